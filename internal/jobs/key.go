package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
)

// idOfKey returns the id of the job of a request with a key: the same key of the same caller is
// the same job, whichever node receives it.
func idOfKey(r Request) string {
	data, _ := json.Marshal([]string{r.Caller, r.Key}) // never fails
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

// lockKey waits until no other submission of this process has the key's id.
func (q *Queue) lockKey(ctx context.Context, id string) (unlock func(), err error) {
	for {
		q.mu.Lock()
		other := q.keys[id]
		if other == nil {
			mine := make(chan struct{})
			q.keys[id] = mine
			q.mu.Unlock()
			return func() {
				q.mu.Lock()
				defer q.mu.Unlock()
				delete(q.keys, id)
				close(mine)
			}, nil
		}
		q.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// fingerprint returns the hash of what a request asks for. sums has the SHA-256 of its files.
func fingerprint(r Request, sums map[string]string) string {
	data, _ := json.Marshal([]any{r.Kind, r.Name, r.Callback, r.Fields, sums}) // maps are sorted; never fails
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// submitted returns the job that was accepted for the key of a request, and whether there is
// one. It returns ErrKeyReused if that was another request. Files that can be read again are
// then at their beginning.
func (q *Queue) submitted(r Request) (job Job, found bool, err error) {
	e, err := q.entry(idOfKey(r))
	if errors.Is(err, ErrUnknown) {
		return Job{}, false, nil
	}
	if err != nil {
		return Job{}, false, err
	}
	q.mu.Lock()
	rec := e.record
	q.mu.Unlock()
	sums := map[string]string{}
	for _, f := range r.Files {
		if s, ok := f.Reader.(io.Seeker); ok {
			if _, err := s.Seek(0, io.SeekStart); err != nil {
				return Job{}, false, err
			}
		}
		digest := sha256.New()
		if _, err := io.Copy(digest, f); err != nil {
			return Job{}, false, err
		}
		sums[f.Name] = hex.EncodeToString(digest.Sum(nil))
	}
	if fingerprint(r, sums) != rec.Fingerprint {
		return Job{}, false, ErrKeyReused
	}
	return rec.Job, true, nil
}
