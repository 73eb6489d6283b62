package jobs

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// Delete cancels a job, or removes it with its files if it has ended. It returns the
// job as it is after the cancellation, or as it was, and whether it was removed. It
// returns ErrUnknown.
func (q *Queue) Delete(ctx context.Context, id string) (job Job, removed bool, err error) {
	e, err := q.entry(id)
	if err != nil {
		return Job{}, false, err
	}
	err = q.finish(ctx, e, func(r *record) error {
		r.end(Cancelled, "")
		return nil
	})
	switch {
	case errors.Is(err, errEnded):
		job, err = q.Get(id)
		if err == nil {
			err = q.remove(ctx, id)
		}
		return job, true, err
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return Job{}, false, ErrUnknown
	case err != nil:
		return Job{}, false, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return e.record.Job, false, nil
}

// finish ends a job by end, which sets a final state, and removes its uploads. It
// returns errEnded if the job has ended already. It stops a running job that end cancels.
func (q *Queue) finish(ctx context.Context, e *entry, end func(*record) error) error {
	var uploads []string
	var id string
	err := q.change(context.WithoutCancel(ctx), e, func(r *record) error {
		if r.State.Final() {
			return errEnded
		}
		id, uploads = r.ID, r.uploads()
		if err := end(r); err != nil {
			return err
		}
		r.Files, r.UploadBytes = nil, 0
		return nil
	})
	if err != nil {
		return err
	}
	q.mu.Lock()
	if e.record.State == Cancelled && e.stop != nil {
		e.stop(ErrCancelled)
	}
	q.mu.Unlock()
	q.wakeNotify()
	q.removeLater(id, uploads)
	return nil
}

// wakeNotify wakes Notify after the end of a job. It does not wait.
func (q *Queue) wakeNotify() {
	select {
	case q.ended <- struct{}{}:
	default:
	}
}

// wakeRun wakes Run after a job was queued. The mutex must be held.
func (q *Queue) wakeRun() {
	close(q.arrived)
	q.arrived = make(chan struct{})
}

// removeLater removes stored files of a job, and its checkpoints, in the background.
func (q *Queue) removeLater(id string, names []string) {
	q.cleaning.Go(func() {
		if err := errors.Join(q.removeCheckpoints(id), q.removeFiles(q.clean, names)); err != nil && q.clean.Err() == nil { // Open or Keep tries again
			q.o.Log.Warn("cannot remove the files of a job", slog.String("job", id), slog.Any("error", err))
		}
	})
}

// Withdraw cancels and removes an attached job that a request of this process has waited for. It
// returns ErrUnknown if the job is not there, or is that of another process, whose client may have
// chosen the same id.
func (q *Queue) Withdraw(ctx context.Context, id string) error {
	e, err := q.entry(id)
	if err != nil {
		return err
	}
	q.mu.Lock()
	own := e.record.Attached && e.record.Owner == q.node
	q.mu.Unlock()
	if !own {
		return ErrUnknown
	}
	return q.deleteAll(ctx, id)
}

// deleteAll cancels a job and removes it.
func (q *Queue) deleteAll(ctx context.Context, id string) error {
	for range 2 {
		if _, removed, err := q.Delete(ctx, id); err != nil || removed {
			return err
		}
	}
	return nil
}

// remove removes a job that has ended, with its files. It returns ErrUnknown if the job is not
// there, or another node has removed it.
func (q *Queue) remove(ctx context.Context, id string) error {
	e, err := q.entry(id)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	e.write.Lock()
	defer e.write.Unlock()
	var names []string
	for try := 0; ; try++ {
		q.mu.Lock()
		gone, revision := e.revision == 0, e.revision
		names = append(e.record.uploads(), e.record.result())
		q.mu.Unlock()
		if gone {
			return ErrUnknown
		}
		// The record is removed first: files without a record are removed later, if this process
		// ends.
		err := q.purge(ctx, id, revision)
		if err == nil {
			break
		}
		if !errors.Is(err, jetstream.ErrKeyExists) || try == maxConflicts {
			return err
		}
		// Another node has changed the record, or removed it, which this one has not heard of yet.
		switch err := q.reload(ctx, id, e); {
		case errors.Is(err, jetstream.ErrKeyNotFound):
			return ErrUnknown
		case err != nil:
			return err
		}
	}
	q.mu.Lock()
	if !q.b.Embedded() {
		q.removed[id] = max(q.removed[id], e.revision)
	}
	q.forget(e)
	q.mu.Unlock()
	q.removeLater(id, names)
	return nil
}

// purge removes a record, in a cluster one with the given revision, or any if that is 0.
func (q *Queue) purge(ctx context.Context, id string, revision uint64) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	if q.b.Embedded() {
		return q.values.Purge(ctx, jetstream.WithPurgeSubject(keySubject(id)))
	}
	return q.b.Delete(ctx, q.states, id, revision)
}

// removeFiles removes stored files.
func (q *Queue) removeFiles(ctx context.Context, names []string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, q.files.Remove(ctx, name))
	}
	return errors.Join(errs...)
}

// idOf returns the id of the job in the name of a stored file.
func idOf(name string) string {
	id, _, _ := strings.Cut(name, "/")
	return id
}
