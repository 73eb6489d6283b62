package jobs

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/nats-io/nats.go/jetstream"
)

// Submit accepts a job. The job and its files are durable when Submit returns. It
// returns ErrFull, ErrNoSpace and ErrTooMany, and on any error nothing is kept.
func (q *Queue) Submit(ctx context.Context, r Request) (Job, error) {
	total := int64(0)
	for _, f := range r.Files {
		total += f.Bytes
	}
	q.sweep(ctx)
	if err := q.reserve(ctx, total); err != nil {
		return Job{}, err
	}
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.reservedBytes -= total + modelReserve
		q.reservedJobs--
	}()
	rec := record{Job: Job{ID: newID(), Kind: r.Kind, Name: r.Name, State: Queued, CreatedAt: wallTime(time.Time{}), Losses: []float64{}, Warnings: []string{}},
		Fields: r.Fields, Callback: r.Callback, Turn: turnOf(r.Caller), Number: q.nextNumber()}
	if err := q.store(ctx, &rec, r.Files); err != nil {
		clean, cancel := withTimeout(context.WithoutCancel(ctx))
		defer cancel()
		return Job{}, errors.Join(err, q.removeFiles(clean, rec.ID, rec.Files))
	}
	return rec.Job, nil
}

// store stores the files of a job, then its record, then its message. A process that
// ends in between leaves files without a record, or a record without a message, which
// Open repairs.
func (q *Queue) store(ctx context.Context, r *record, list []File) error {
	for _, f := range list {
		r.Files = append(r.Files, f.Name)
		n, _, err := q.files.put(ctx, r.ID+"/"+f.Name, f)
		if err != nil {
			return err
		}
		r.UploadBytes += n
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// From here on the job is accepted, even if the client leaves.
	ctx, cancel := withTimeout(context.WithoutCancel(ctx))
	defer cancel()
	revision, err := q.states.Create(ctx, r.ID, data)
	if err == nil {
		// The worker may receive the message before publish returns.
		q.mu.Lock()
		q.jobs[r.ID] = &entry{record: *r, revision: revision, changed: make(chan struct{})}
		q.mu.Unlock()
		err = q.publish(ctx, r)
	}
	if err != nil {
		q.mu.Lock()
		delete(q.jobs, r.ID)
		q.mu.Unlock()
		return errors.Join(err, q.values.Purge(ctx, jetstream.WithPurgeSubject(keySubject(r.ID))))
	}
	return nil
}

// keySubject returns the subject of a job's record.
func keySubject(id string) string { return "$KV." + bucket + "." + id }

// publish puts the message of a job into the queue.
func (q *Queue) publish(ctx context.Context, r *record) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	if _, err := q.js.Publish(ctx, workOf(r), nil, jetstream.WithMsgID(r.ID)); err != nil {
		return err
	}
	q.addTurn(r.Turn)
	select {
	case q.submitted <- struct{}{}:
	default:
	}
	return nil
}

// reserve reserves the place of a job with uploads of n bytes.
func (q *Queue) reserve(ctx context.Context, n int64) error {
	free, err := files.FreeSpace(q.o.Dir)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.bytes()+q.reservedBytes+n+modelReserve > q.o.MaxBytes {
			return ErrFull
		}
		if n+q.reservedBytes+SpareDisk > free {
			return ErrNoSpace
		}
		if len(q.jobs)+q.reservedJobs < q.o.MaxJobs {
			break
		}
		oldest := q.finished()
		if len(oldest) == 0 {
			return ErrTooMany
		}
		q.mu.Unlock()
		err := q.remove(ctx, oldest[0].record.ID)
		q.mu.Lock()
		if err != nil && !errors.Is(err, ErrUnknown) {
			return err
		}
	}
	q.reservedBytes += n + modelReserve
	q.reservedJobs++
	return nil
}

// bytes returns the bytes of all jobs. The mutex must be held.
func (q *Queue) bytes() (n int64) {
	for _, e := range q.jobs {
		n += e.record.bytes()
	}
	return n
}

// finished returns the jobs that have ended, in the order of their ends. The mutex
// must be held.
func (q *Queue) finished() []*entry {
	list := slices.DeleteFunc(slices.Collect(maps.Values(q.jobs)), func(e *entry) bool { return !e.record.State.Final() })
	slices.SortFunc(list, func(a, b *entry) int { return cmp.Compare(a.record.EndNumber, b.record.EndNumber) })
	return list
}

// sweepInterval is the time between two searches for jobs that are too old.
const sweepInterval = time.Minute

// sweep removes the jobs that ended more than MaxAge ago.
func (q *Queue) sweep(ctx context.Context) {
	q.mu.Lock()
	now := time.Now()
	due := q.o.MaxAge > 0 && now.Sub(q.swept) >= min(sweepInterval, q.o.MaxAge)
	var old []string
	if due {
		q.swept = now
		for _, e := range q.finished() {
			if e.agedBefore+now.Sub(e.ended) > q.o.MaxAge {
				old = append(old, e.record.ID)
			}
		}
	}
	q.mu.Unlock()
	for _, id := range old {
		if err := q.remove(ctx, id); err != nil && !errors.Is(err, ErrUnknown) {
			q.o.Log.Warn("cannot remove an old job", slog.String("job", id), slog.Any("error", err))
		}
	}
}

// newID returns a random id of 32 hexadecimal digits.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
