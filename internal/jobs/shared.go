package jobs

import (
	"cmp"
	"context"
	"errors"

	"github.com/deepmed/anomaly/internal/broker"
)

// What a process needs that works for a job which another process runs.

// Upload returns a reader of a file of the request of a job, which is usable until ctx ends.
// It returns ErrUnknown if there is none, or none any more: the files are removed when the
// job ends.
func (q *Queue) Upload(ctx context.Context, id, name string) (*Content, error) {
	e, err := q.entry(id)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	r := e.record
	q.mu.Unlock()
	c, err := q.files.OpenStored(ctx, r.upload(name))
	if errors.Is(err, broker.ErrNotFound) {
		err = ErrUnknown
	}
	return c, err
}

// Sharers returns the number of running jobs of the same kind and caller as a job, with it.
func (q *Queue) Sharers(id string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.jobs[id]
	if e == nil {
		return 1
	}
	n := 0
	for _, other := range q.jobs {
		r := &other.record
		if r.State == Running && r.Turn == e.record.Turn && cmp.Or(r.Kind, KindTrain) == cmp.Or(e.record.Kind, KindTrain) {
			n++
		}
	}
	return max(n, 1)
}
