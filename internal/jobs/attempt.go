package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// In a cluster a message comes again when its runner was not heard of for clusterAckWait: it was
// killed, or only stopped or cut off, and goes on later. The number of the attempt decides which
// one may change the record: a runner changes it only while the record has its attempt.

// start sets the state Running and begins an attempt. It ends that of a runner that is gone.
func (q *Queue) start(ctx context.Context, e *entry, t *Task) error {
	for {
		err := q.change(ctx, e, func(r *record) error {
			switch {
			case r.State.Final():
				return errEnded
			case r.State == Running && !q.b.Embedded():
				return errRunning
			}
			now := wallTime(r.CreatedAt)
			r.State, r.StartedAt, r.Progress, r.Losses = Running, &now, Progress{}, []float64{}
			r.Attempts++
			if !q.b.Embedded() {
				r.Runner = q.node
			}
			t.Job = r.Job
			return nil
		})
		if errors.Is(err, errRunning) {
			if err = q.takeOver(ctx, e); err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		q.mu.Lock()
		e.attempt = t.Job.Attempts
		q.mu.Unlock()
		return nil
	}
}

// errRunning is returned for a job that is running already.
var errRunning = errors.New("jobs: the job is running")

// takeOver queues a running job again whose runner does not answer. It returns errElsewhere if
// the runner does, and errEnded if the job has failed because too many runners were gone.
func (q *Queue) takeOver(ctx context.Context, e *entry) error {
	q.mu.Lock()
	id, attempt, runner := e.record.ID, e.record.Attempts, e.record.Runner
	q.mu.Unlock()
	if runner != q.node {
		if _, lives, _ := q.ask(ctx, runner, question{Job: id, Attempt: attempt}); lives {
			return errElsewhere
		}
	}
	var uploads []string
	var after record
	err := q.change(ctx, e, func(r *record) error {
		switch {
		case r.State.Final():
			return errEnded
		case r.State != Running || r.Attempts != attempt:
			return errChanged
		}
		uploads = r.uploads()
		if r.Runner == q.node {
			r.requeue() // this process lives, but does not run the job
		} else if err := gone(r); err != nil {
			return err
		}
		after = *r
		return nil
	})
	if errors.Is(err, errChanged) {
		return nil // start finds out
	}
	if err != nil {
		return err
	}
	if runner != q.node {
		q.countRedelivery(after.Kind)
	}
	q.o.Log.Warn("the runner of a job is gone", slog.String("job", id), slog.String("node", runner), slog.String("state", string(after.State)), slog.Int("times", after.Deaths))
	if after.State.Final() {
		q.wakeNotify()
		q.removeLater(id, uploads)
		return errEnded
	}
	return nil
}

// errChanged is returned for a record that another node has changed meanwhile.
var errChanged = errors.New("jobs: another node has changed the job")

// deathStep is how much further than at an earlier death a job must have come, as a fraction,
// so that its deaths are counted from the beginning: it does not end processes at one place.
const deathStep = 0.05

// gone is died in a cluster, whose nodes may end for many reasons.
func gone(r *record) error {
	if r.Progress.Fraction >= r.DeathFraction+deathStep {
		r.Deaths, r.DeathFraction = 0, r.Progress.Fraction
	}
	return died(r)
}

// fence returns an error unless a record is that of a task's attempt.
func (q *Queue) fence(r *record, t *Task) error {
	switch {
	case q.b.Embedded():
		return nil
	case r.State != Running || r.Attempts != t.Job.Attempts || r.Runner != q.node:
		return errLost
	}
	return nil
}

// Check returns an error if another node runs the job, or it was cancelled. It reads the record
// from the store: Run should call it before it changes anything outside the queue.
func (t *Task) Check(ctx context.Context) error {
	q := t.q
	if q.b.Embedded() {
		return ctx.Err()
	}
	v, err := q.b.Get(ctx, q.states, t.Job.ID)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return ErrCancelled
	}
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(v.Value(), &r); err != nil {
		return err
	}
	if r.State == Cancelled {
		return ErrCancelled
	}
	return q.fence(&r, t)
}

// lost ends what remains of an attempt that was lost: the job is queued if no other node has it
// yet, its result is removed, and the death of its node is not counted, because the node lives.
func (q *Queue) lost(t *Task, e *entry) {
	q.o.Log.Warn("a job is left to another node", slog.String("job", t.Job.ID), slog.Int("attempt", t.Job.Attempts))
	name := t.resultName()
	q.cleaning.Go(func() {
		for pause := retryPause; q.clean.Err() == nil; pause *= 2 {
			ctx, cancel := withTimeout(q.clean)
			err := q.change(ctx, e, func(r *record) error {
				switch {
				case r.State.Final() && r.result() == name:
					return errKept
				case r.State == Running && r.Attempts == t.Job.Attempts && r.Runner == q.node:
					r.requeue() // no other node has it yet
					return nil
				case r.State.Final(), r.Deaths == 0, r.Attempts < t.Job.Attempts:
					return errChanged
				}
				r.Deaths--
				return nil
			})
			cancel()
			if errors.Is(err, errKept) {
				return
			}
			if err == nil || errors.Is(err, errChanged) || errors.Is(err, jetstream.ErrKeyNotFound) {
				if err := q.files.Remove(q.clean, name); err == nil || q.clean.Err() != nil {
					return
				}
			}
			select {
			case <-q.clean.Done():
			case <-time.After(min(pause, time.Minute)):
			}
		}
	})
}

// errKept is returned for an attempt that has ended its job although the answer was lost.
var errKept = errors.New("jobs: the attempt has ended the job")
