package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
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

// Worker does the jobs of a kind.
type Worker struct {
	// Kind is the kind of the jobs; empty for KindTrain.
	Kind string
	// Parallel is the number of jobs that run at once; 0 means 1.
	Parallel int
	// Admit waits until a job may run. It returns a function to call after the job.
	Admit func(ctx context.Context) (release func(), err error)
	// Run does a job. The text of its error is the sentence for the job's user, except for
	// broker.ErrUnavailable: such a job is queued again.
	Run func(ctx context.Context, t *Task) (Result, error)
	// Ended, if not nil, is called with each job that Run has ended: not with those that
	// Delete cancelled.
	Ended func(Job)
}

// Result is what a job has made.
type Result struct {
	// Model is the model's file of a job of KindTrain, and Results that of another kind. In a
	// cluster they should be io.Seekers, so that they can be written again when the servers
	// were away.
	Model, Results io.Reader
	Warnings       []string
	// Meta is what Outcome returns to the process that waits for the job.
	Meta map[string]string
}

// Coded is an error of Worker.Run with a code, which Outcome returns.
type Coded interface {
	error
	Code() int
}

// Run does jobs of the worker's kind: the callers in turns, and the jobs of each caller in the
// order of their submission. It returns when accepting has ended and no job runs. When
// working ends, running jobs are given back to the queue. It must be called once for each kind.
func (q *Queue) Run(accepting, working context.Context, w Worker) {
	w.Kind = cmp.Or(w.Kind, KindTrain)
	p := &puller{q: q, kind: w.Kind, most: max(w.Parallel, 1)}
	var loops sync.WaitGroup
	for i := range max(w.Parallel, 1) {
		if i > 0 {
			// The first has removed the consumers of an earlier process.
			loops.Go(func() { q.runLoop(accepting, working, w, p, false) })
			continue
		}
		ready := make(chan struct{})
		loops.Go(func() {
			if err := p.reset(accepting); err != nil && accepting.Err() == nil {
				q.o.Log.Warn("the queue is not ready", slog.Any("error", err))
			}
			close(ready)
			q.runLoop(accepting, working, w, p, w.Parallel <= 1)
		})
		<-ready
	}
	loops.Wait()
}

// runLoop does jobs one after the other, also after failures of the store. alone reports whether
// no other loop has messages of the puller.
func (q *Queue) runLoop(accepting, working context.Context, w Worker, p *puller, alone bool) {
	failed := false
	for accepting.Err() == nil {
		err := q.runJobs(accepting, working, w, p)
		if err == nil || accepting.Err() != nil {
			failed = false
			continue
		}
		switch {
		case failed:
		case q.b.Embedded():
			q.o.Log.Error("no jobs can be taken from the queue; if the disk was full, restart the service when there is space again", slog.Any("error", err))
		default:
			q.o.Log.Warn("no jobs can be taken from the queue until the NATS servers answer", slog.Any("error", err))
		}
		failed = true
		select {
		case <-accepting.Done():
		case <-time.After(retryPause):
		}
		if alone || !q.b.Embedded() {
			if err := p.reset(accepting); err != nil && accepting.Err() == nil {
				q.o.Log.Debug("the queue is not ready", slog.Any("error", err))
			}
		}
	}
}

// runMessage does the job of a message. It acknowledges the message only when the job
// has a final state.
func (q *Queue) runMessage(accepting, working context.Context, w Worker, m jetstream.Msg) error {
	_, id := splitWork(m.Subject())
	e, err := q.entry(id)
	if errors.Is(err, ErrUnknown) { // the job was removed
		return q.ack(working, m)
	}
	if err != nil {
		return errors.Join(err, m.Nak())
	}
	ctx, cancel := context.WithCancelCause(working)
	defer cancel(nil)
	q.mu.Lock()
	if e.stop != nil {
		// The job still runs here, but the servers have not heard of that for too long.
		e.stop(errLost)
		q.mu.Unlock()
		return m.NakWithDelay(retryPause)
	}
	e.stop, e.attempt = cancel, 0
	ended := e.record.State.Final()
	t := &Task{Job: e.record.Job, Fields: e.record.Fields, Files: slices.Clone(e.record.Files), q: q, uploads: e.record.Uploads, owner: e.record.Owner, trace: e.record.Trace}
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		e.stop, e.attempt = nil, 0
	}()
	if ended {
		return q.ack(working, m)
	}
	stop := q.keepAlive(t, e, m, cancel)
	err = q.runJob(accepting, ctx, w, t, e)
	stop()
	if !q.b.Embedded() && (errors.Is(err, errLost) || errors.Is(context.Cause(ctx), errLost)) {
		q.lost(t, e)
		return nil
	}
	if errors.Is(err, errElsewhere) {
		// Its runner keeps the message alive; this delivery was a mistake of the servers.
		return m.NakWithDelay(q.ackWait)
	}
	// A job that is cancelled may have saved a checkpoint after it had ended. Uploads remain
	// if the store answered too late that the job has ended, and so does a result without
	// the state Succeeded.
	q.mu.Lock()
	got, gone := e.record, e.revision == 0
	q.mu.Unlock()
	if gone || got.State.Final() {
		rest := t.storedFiles()
		if name := t.resultName(); got.State != Succeeded || got.result() != name {
			rest = append(rest, name)
		}
		q.removeLater(id, rest)
	}
	if err == nil && w.Ended != nil && !gone {
		w.Ended(got.Job)
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

// ack acknowledges a message and waits until that is durable. In a cluster a message that is
// not acknowledged comes again, and is acknowledged then.
func (q *Queue) ack(ctx context.Context, m jetstream.Msg) error {
	err := q.b.Retry(context.WithoutCancel(ctx), m.DoubleAck)
	if err != nil && !q.b.Embedded() && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		q.o.Log.Debug("a message was not acknowledged", slog.String("subject", m.Subject()), slog.Any("error", err))
	}
	if !q.b.Embedded() {
		return nil
	}
	return err
}

// Causes why a job does not end in this process.
var (
	// errGivenBack is returned for a job that is in the queue again.
	errGivenBack = errors.New("jobs: the job was given back")
	// errLost is the cause of the context of a job that another node runs now, or may run
	// because this one could not report that it does.
	errLost = errors.New("the job is left to another node")
	// errElsewhere is returned for a job that another node runs, which has answered.
	errElsewhere = errors.New("jobs: another node runs the job")
)

// stopped reports whether a job was stopped without being cancelled.
func stopped(ctx context.Context) bool {
	return ctx.Err() != nil && !errors.Is(context.Cause(ctx), ErrCancelled)
}

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
	if err := q.start(ctx, e, t); err != nil {
		return err
	}
	ctx, span := traceRun(ctx, t)
	result, err := q.call(ctx, w, t)
	endTrace(t, span, err)
	if err != nil && (stopped(ctx) || errors.Is(err, broker.ErrUnavailable)) {
		return q.giveBack(ctx, e, t)
	}
	if err == nil {
		err = q.succeed(ctx, e, t, result)
		if err != nil && (stopped(ctx) || errors.Is(err, broker.ErrUnavailable)) {
			return q.giveBack(ctx, e, t)
		}
		if err != nil && !errors.Is(err, errEnded) && !errors.Is(err, errLost) && !errors.Is(err, ErrNoSpace) {
			q.o.Log.Error("the result of a job cannot be stored", slog.String("job", t.Job.ID), slog.Any("error", err))
			err = serviceFailed(t.Job.ID)
		}
	}
	if err != nil && !errors.Is(err, errEnded) && !errors.Is(err, errLost) {
		reason, code := err.Error(), 0
		if coded := Coded(nil); errors.As(err, &coded) {
			code = coded.Code()
		}
		err = q.persist(ctx, func() error {
			return q.finish(ctx, e, func(r *record) error {
				if err := q.fence(r, t); err != nil {
					return err
				}
				t.describe(r)
				r.end(Failed, reason)
				r.Code = code
				return nil
			})
		})
	}
	return err
}

// persist repeats f while the servers of a cluster do not answer and the job is not lost.
func (q *Queue) persist(ctx context.Context, f func() error) error {
	for {
		err := f()
		if !errors.Is(err, broker.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
	}
}

// giveBackTime is the longest time to give a job back, so that a store that does not
// answer does not delay a shutdown. A job that is not given back counts as killed.
const giveBackTime = 3 * time.Second

// giveBack queues a running job again.
func (q *Queue) giveBack(ctx context.Context, e *entry, t *Task) error {
	if errors.Is(context.Cause(ctx), errLost) {
		return errLost
	}
	limit := giveBackTime
	if ctx.Err() == nil {
		limit = q.ackWait
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	err := q.change(ctx, e, func(r *record) error {
		if r.State.Final() {
			return errEnded
		}
		if err := q.fence(r, t); err != nil {
			return err
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

// succeed stores the result of a job and ends the job. The state is final only when the
// result is durable. On an error the result remains: a store that does not answer in time may
// have stored the state. runMessage removes a result without it.
func (q *Queue) succeed(ctx context.Context, e *entry, t *Task, result Result) error {
	if free, err := q.b.Space(); err != nil {
		return err
	} else if free < SpareDisk {
		return ErrNoSpace
	}
	file := result.Model
	if cmp.Or(t.Job.Kind, KindTrain) != KindTrain {
		file = result.Results
	}
	size, sum, err := q.putResult(ctx, t, file)
	if err != nil {
		return noSpace(err)
	}
	return q.persist(ctx, func() error {
		return q.finish(ctx, e, func(r *record) error {
			if err := q.fence(r, t); err != nil {
				return err
			}
			t.describe(r)
			r.end(Succeeded, "")
			r.Progress.Fraction = 1
			r.ModelBytes, r.Result, r.Meta = size, t.resultOf(), result.Meta
			if result.Results != nil {
				r.ResultsSHA256 = &sum
			} else {
				r.ModelSHA256 = &sum
			}
			r.Warnings = append([]string{}, result.Warnings...)
			return nil
		})
	})
}

// putResult stores the result of a job. It tries again while the servers of a cluster do not
// answer, if the result can be read again.
func (q *Queue) putResult(ctx context.Context, t *Task, file io.Reader) (size int64, sum string, err error) {
	for {
		size, sum, err = q.files.Put(ctx, t.resultName(), file)
		again, ok := file.(io.Seeker)
		if !errors.Is(err, broker.ErrUnavailable) || ctx.Err() != nil || !ok {
			return size, sum, err
		}
		if _, err := again.Seek(0, io.SeekStart); err != nil {
			return 0, "", err
		}
	}
}
