package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// progressInterval is the time between two writes of a job's progress.
	progressInterval = time.Second
	// heartbeat is the time between two reports that a job is in progress.
	heartbeat = 5 * time.Second
	// retryPause is the pause after a failure of the store.
	retryPause = time.Second
)

// Worker does the jobs of a queue.
type Worker struct {
	// Admit waits until a job may run. It returns a function to call after the job.
	Admit func(ctx context.Context) (release func(), err error)
	// Run does a job. The text of its error is the sentence for the job's user.
	Run func(ctx context.Context, t *Task) (Result, error)
	// Ended, if not nil, is called with each job that Run has ended: not with those that
	// Delete cancelled.
	Ended func(Job)
}

// Result is what a job has made.
type Result struct {
	Model    io.Reader // the model's file
	Warnings []string
}

// Task is a job that runs.
type Task struct {
	Job    Job
	Fields map[string]string
	Files  []string // names

	q        *Queue
	mu       sync.Mutex
	progress Progress
	losses   []float64
	set      bool // the two above
	pending  bool // the two above were not written since they were set
}

// Open returns a reader of a file of the request, which is usable until ctx ends.
func (t *Task) Open(ctx context.Context, name string) (*Content, error) {
	return t.q.files.open(ctx, t.Job.ID+"/"+name)
}

// Progress sets the job's progress and the loss of each epoch so far, which it copies. It
// does not wait: progress is written once a second.
func (t *Task) Progress(p Progress, losses []float64) {
	p.omitNonFinite()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.progress, t.losses, t.set, t.pending = p, append(t.losses[:0], losses...), true, true
}

// takePending reports whether there is progress to write, and marks it as written.
func (t *Task) takePending() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	pending := t.pending
	t.pending = false
	return pending
}

// describe sets the progress of a record to that of the task.
func (t *Task) describe(r *record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.set {
		r.Progress, r.Losses = t.progress, append([]float64{}, t.losses...)
	}
}

// Run does jobs, one at a time: the callers in turns, and the jobs of each caller in the
// order of their submission. It returns when accepting has ended and no job runs. When
// working ends, the running job is given back to the queue.
func (q *Queue) Run(accepting, working context.Context, w Worker) {
	failed := false
	for accepting.Err() == nil {
		err := q.runJobs(accepting, working, w)
		if err == nil || accepting.Err() != nil {
			failed = false
			continue
		}
		if !failed {
			q.o.Log.Error("no jobs can be taken from the queue; if the disk was full, restart the service when there is space again", slog.Any("error", err))
		}
		failed = true
		select {
		case <-accepting.Done():
		case <-time.After(retryPause):
		}
	}
}

// runMessage does the job of a message. It acknowledges the message only when the job
// has a final state.
func (q *Queue) runMessage(accepting, working context.Context, w Worker, m jetstream.Msg) error {
	_, id := splitWork(m.Subject())
	e, err := q.entry(id)
	if err != nil { // the job was removed
		return q.ack(working, m)
	}
	ctx, cancel := context.WithCancelCause(working)
	defer cancel(nil)
	q.mu.Lock()
	e.stop = cancel
	ended := e.record.State.Final()
	t := &Task{Job: e.record.Job, Fields: e.record.Fields, Files: slices.Clone(e.record.Files), q: q}
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		e.stop = nil
	}()
	if ended {
		return q.ack(working, m)
	}
	stop := q.keepAlive(t, e, m)
	err = q.runJob(accepting, ctx, w, t, e)
	stop()
	// A job that is cancelled may have saved a checkpoint after it had ended. Uploads remain
	// if the store answered too late that the job has ended, and so does a model without
	// the state Succeeded.
	if got, unknown := q.Get(id); unknown != nil || got.State.Final() {
		rest := t.Files
		if got.State != Succeeded {
			rest = append(rest, modelFile)
		}
		q.removeLater(id, rest)
	}
	if err == nil && w.Ended != nil {
		if job, unknown := q.Get(id); unknown == nil {
			w.Ended(job)
		}
	}
	if errors.Is(err, errEnded) || errors.Is(err, jetstream.ErrKeyNotFound) {
		err = nil // cancelled, and perhaps removed
	}
	if errors.Is(err, errGivenBack) {
		return m.Nak()
	}
	if err != nil {
		return errors.Join(err, m.Nak())
	}
	return q.ack(working, m)
}

// ack acknowledges a message and waits until that is durable.
func (q *Queue) ack(ctx context.Context, m jetstream.Msg) error {
	ctx, cancel := withTimeout(context.WithoutCancel(ctx))
	defer cancel()
	return m.DoubleAck(ctx)
}

// keepAlive writes the progress of a job and reports that it is in progress, until stop
// is called.
func (q *Queue) keepAlive(t *Task, e *entry, m jetstream.Msg) (stop func()) {
	id, done := t.Job.ID, make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		write, alive := time.NewTicker(progressInterval), time.NewTicker(heartbeat)
		defer write.Stop()
		defer alive.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-alive.C:
				if err := m.InProgress(); err != nil {
					q.o.Log.Warn("cannot report that a job is in progress", slog.String("job", id), slog.Any("error", err))
				}
			case <-write.C:
				if !t.takePending() {
					continue
				}
				err := q.change(ctx, e, func(r *record) error {
					if r.State != Running {
						return errEnded
					}
					t.describe(r)
					return nil
				})
				if err != nil && ctx.Err() == nil && !errors.Is(err, errEnded) && !errors.Is(err, jetstream.ErrKeyNotFound) {
					q.o.Log.Warn("cannot write the progress of a job", slog.String("job", id), slog.Any("error", err))
				}
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// errGivenBack is returned for a job that is in the queue again.
var errGivenBack = errors.New("jobs: the job was given back")

// runJob does a job and ends it. It returns nil if the job has a final state then.
func (q *Queue) runJob(accepting, ctx context.Context, w Worker, t *Task, e *entry) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(accepting, cancel)()
	release, err := w.Admit(waiting)
	if err != nil {
		switch {
		case errors.Is(context.Cause(ctx), ErrCancelled):
			return errEnded
		case waiting.Err() != nil:
			return errGivenBack
		}
		return err
	}
	defer release()
	err = q.change(ctx, e, func(r *record) error {
		if r.State.Final() {
			return errEnded
		}
		now := wallTime(r.CreatedAt)
		r.State, r.StartedAt, r.Progress, r.Losses = Running, &now, Progress{}, []float64{}
		r.Attempts++
		t.Job = r.Job
		return nil
	})
	if err != nil {
		return err
	}
	result, err := q.call(ctx, w, t)
	if err != nil && ctx.Err() != nil && !errors.Is(context.Cause(ctx), ErrCancelled) {
		return q.giveBack(ctx, e)
	}
	if err == nil {
		err = q.succeed(ctx, e, t, result)
		if err != nil && ctx.Err() != nil && !errors.Is(context.Cause(ctx), ErrCancelled) {
			return q.giveBack(ctx, e)
		}
		if err != nil && !errors.Is(err, errEnded) && !errors.Is(err, ErrNoSpace) {
			q.o.Log.Error("the model of a job cannot be stored", slog.String("job", t.Job.ID), slog.Any("error", err))
			err = serviceFailed(t.Job.ID)
		}
	}
	if err != nil && !errors.Is(err, errEnded) {
		reason := err.Error()
		err = q.finish(ctx, e, func(r *record) {
			t.describe(r)
			r.end(Failed, reason)
		})
	}
	return err
}

// giveBackTime is the longest time to give a job back, so that a store that does not
// answer does not delay a shutdown. A job that is not given back counts as killed.
const giveBackTime = 3 * time.Second

// giveBack queues a running job again.
func (q *Queue) giveBack(ctx context.Context, e *entry) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackTime)
	defer cancel()
	err := q.change(ctx, e, func(r *record) error {
		if r.State.Final() {
			return errEnded
		}
		r.requeue()
		return nil
	})
	if err != nil {
		return err
	}
	return errGivenBack
}

// call runs the worker. A panic is the failure of the job.
func (q *Queue) call(ctx context.Context, w Worker, t *Task) (r Result, err error) {
	defer func() {
		if v := recover(); v != nil {
			q.o.Log.Error("job panicked", slog.String("job", t.Job.ID), slog.Any("value", v), slog.String("stack", string(debug.Stack())))
			err = serviceFailed(t.Job.ID)
		}
	}()
	return w.Run(ctx, t)
}

// serviceFailed returns the reason of a job that failed without a fault of its user.
func serviceFailed(id string) error {
	//lint:ignore ST1005 a sentence for users
	return fmt.Errorf("The service failed; its log has the reason under the job %s", id)
}

// succeed stores the model of a job and ends the job. The state is final only when the
// model is durable. On an error the model remains: a store that does not answer in time may
// have stored the state. runMessage removes a model without it.
func (q *Queue) succeed(ctx context.Context, e *entry, t *Task, result Result) error {
	name := t.Job.ID + "/" + modelFile
	if free, err := files.FreeSpace(q.o.Dir); err != nil {
		return err
	} else if free < SpareDisk {
		return ErrNoSpace
	}
	size, sum, err := q.files.put(ctx, name, result.Model)
	if err != nil {
		return err
	}
	return q.finish(ctx, e, func(r *record) {
		t.describe(r)
		r.end(Succeeded, "")
		r.Progress.Fraction = 1
		r.ModelBytes, r.ModelSHA256 = size, &sum
		r.Warnings = append([]string{}, result.Warnings...)
	})
}
