package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/nats-io/nats.go/jetstream"
)

// maxRemoved is the maximum number of removed jobs whose last revisions are kept.
const maxRemoved = 10000

// join begins to follow the records of a cluster, and waits until all are read.
func (q *Queue) join(ctx context.Context) error {
	if err := q.answerNodes(); err != nil {
		return err
	}
	current := make(chan struct{})
	q.cleaning.Go(func() {
		q.b.Watch(q.clean, bucket, q.apply, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.current = true
			close(current)
		})
	})
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-current:
		return nil
	case <-ctx.Done():
		return broker.ErrUnavailable
	}
}

// apply applies a change of a record to the jobs in memory, unless they have a later one.
func (q *Queue) apply(c broker.Change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.jobs[c.Key]
	if c.Removed {
		if len(q.removed) >= maxRemoved {
			clear(q.removed)
		}
		q.removed[c.Key] = max(q.removed[c.Key], c.Revision)
		if e != nil && e.revision < c.Revision {
			q.forget(e)
		}
		return
	}
	if c.Revision <= q.removed[c.Key] || e != nil && c.Revision <= e.revision {
		return
	}
	var r record
	if err := json.Unmarshal(c.Value, &r); err != nil || r.ID != c.Key {
		q.o.Log.Error("the record of a job is damaged", slog.String("job", c.Key), slog.Any("error", err))
		return
	}
	if e == nil {
		e = &entry{changed: make(chan struct{})}
		q.jobs[c.Key] = e
		if r.State.Final() && r.EndedAt != nil && !q.current {
			e.agedBefore = wallAge(*r.EndedAt)
		}
	}
	q.set(e, r, c.Revision)
}

// set sets the record of a job in memory. The mutex must be held.
func (q *Queue) set(e *entry, r record, revision uint64) {
	e.record, e.revision = r, revision
	q.number = max(q.number, r.Number, r.EndNumber)
	switch {
	case r.State.Final():
		if e.ended.IsZero() {
			e.ended = time.Now()
		}
		q.wakeNotify()
	case r.State == Queued:
		q.addTurnLocked(r.Turn)
		q.wakeRun()
	}
	if e.stop != nil {
		switch {
		case r.State == Cancelled:
			e.stop(ErrCancelled)
		case e.attempt > 0 && (r.Attempts != e.attempt || r.Runner != q.node):
			e.stop(errLost)
		}
	}
	e.notify()
}

// forget removes a job from memory that was removed from the store. The mutex must be held.
func (q *Queue) forget(e *entry) {
	if q.jobs[e.record.ID] == e {
		delete(q.jobs, e.record.ID)
	}
	e.revision = 0
	if e.stop != nil {
		e.stop(ErrCancelled)
	}
	e.notify()
}

// getTimeout bounds how long Get waits for a job that is not in memory.
const getTimeout = 10 * time.Second

// fetch reads a job that is not in memory: another node may have accepted it a moment ago. It
// returns ErrUnknown if there is none.
func (q *Queue) fetch(id string) (*entry, error) {
	ctx, cancel := context.WithTimeout(q.clean, getTimeout)
	defer cancel()
	v, err := q.b.Get(ctx, q.states, id)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrInvalidKey):
		return nil, ErrUnknown
	case errors.Is(err, context.DeadlineExceeded):
		return nil, errors.Join(broker.ErrUnavailable, err)
	case err != nil:
		return nil, err
	}
	q.apply(broker.Change{Key: id, Value: v.Value(), Revision: v.Revision()})
	q.mu.Lock()
	defer q.mu.Unlock()
	if e := q.jobs[id]; e != nil {
		return e, nil
	}
	return nil, ErrUnknown
}
