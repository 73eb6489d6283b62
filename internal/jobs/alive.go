package jobs

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ackProgress is what the servers read as a report that a message is in progress.
const ackProgress = "+WPI"

// keepAlive writes the progress of a job and reports that it is in progress, until stop
// is called. In a cluster it ends the job by cancel when the servers have not answered its
// reports for ackWait, after which another node may have the job.
func (q *Queue) keepAlive(t *Task, e *entry, m jetstream.Msg, cancel context.CancelCauseFunc) (stop func()) {
	ctx, end := context.WithCancel(context.Background())
	id := t.Job.ID // the attempt that begins sets t.Job
	done := make(chan struct{}, 2)
	go func() {
		q.writeProgress(ctx, t, e)
		done <- struct{}{}
	}()
	go func() {
		q.reportAlive(ctx, id, m, cancel)
		done <- struct{}{}
	}()
	return func() {
		end()
		<-done
		<-done
	}
}

// reportAlive reports that a job is in progress until ctx ends.
func (q *Queue) reportAlive(ctx context.Context, id string, m jetstream.Msg, cancel context.CancelCauseFunc) {
	alive := time.NewTicker(q.heartbeat)
	defer alive.Stop()
	heard := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-alive.C:
		}
		began := time.Now()
		err := q.reportOnce(ctx, m)
		switch {
		case err == nil:
			heard = began
		case ctx.Err() != nil:
			return
		default:
			q.o.Log.Warn("cannot report that a job is in progress", slog.String("job", id), slog.Any("error", err))
		}
		if !q.b.Embedded() && time.Since(heard) >= q.ackWait {
			cancel(errLost)
			return
		}
	}
}

func (q *Queue) reportOnce(ctx context.Context, m jetstream.Msg) error {
	if q.b.Embedded() {
		return m.InProgress()
	}
	// As a request, so that the answer shows that the servers have heard it.
	ctx, cancel := context.WithTimeout(ctx, q.heartbeat)
	defer cancel()
	_, err := q.b.Conn.RequestWithContext(ctx, m.Reply(), []byte(ackProgress))
	return err
}

// writeProgress writes the progress of a job until ctx ends.
func (q *Queue) writeProgress(ctx context.Context, t *Task, e *entry) {
	write := time.NewTicker(progressInterval)
	defer write.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-write.C:
		}
		if !t.takePending() {
			continue
		}
		err := q.change(ctx, e, func(r *record) error {
			if r.State != Running {
				return errEnded
			}
			if err := q.fence(r, t); err != nil {
				return err
			}
			t.describe(r)
			return nil
		})
		if err != nil && ctx.Err() == nil && !errors.Is(err, errEnded) && !errors.Is(err, errLost) && !errors.Is(err, jetstream.ErrKeyNotFound) {
			q.o.Log.Warn("cannot write the progress of a job", slog.String("job", t.Job.ID), slog.Any("error", err))
		}
	}
}
