package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Options configure a Queue.
type Options struct {
	// Dir is the folder of the queue, which Open creates.
	Dir string
	// MaxJobs is the maximum number of jobs. For a new one beyond it, the job that
	// ended first is removed.
	MaxJobs int
	// MaxAge is how long a job is kept after its end; 0 means no limit.
	MaxAge time.Duration
	// MaxBytes is the maximum size of all uploads and models together.
	MaxBytes int64
	Log      *slog.Logger
}

const (
	// workSubject is the prefix of the subjects of messages, one for each unfinished job.
	// The turn of its caller follows, a dot, and its id.
	workSubject = "jobs.work."
	// workStream is the name of their stream.
	workStream = "jobs"
	// modelFile is the name of a job's model among its files.
	modelFile = "model"
	// modelReserve is the part of MaxBytes that is reserved for the model of each
	// unfinished job.
	modelReserve = 64 << 20
	// SpareDisk is what must remain of the disk, in bytes, whoever writes to it. JetStream
	// stops when the disk is full.
	SpareDisk = 64 << 20
	// ackWait is the time after which a message is delivered again if the worker does
	// not report that the job is in progress.
	ackWait = time.Minute
	// maxDeaths is the number of times that a job may end the process. Then it fails.
	maxDeaths = 3
)

// entry is a job in memory.
type entry struct {
	write sync.Mutex // held while the record is changed in the store

	// The queue's mutex guards the rest.
	record   record
	revision uint64                  // of the record in the store
	changed  chan struct{}           // closed when the record changes or is removed
	stop     context.CancelCauseFunc // cancels the running job; nil if none runs
	// ended is when the job ended, or when Open read a job that had ended: agedBefore was
	// its age then.
	ended      time.Time
	agedBefore time.Duration
}

// Queue is a queue of jobs. It may be used concurrently and must be closed.
type Queue struct {
	o      Options
	lock   *os.File
	server *server.Server
	conn   *nats.Conn
	js     jetstream.JetStream
	work   jetstream.Stream
	states jetstream.KeyValue
	values jetstream.Stream // of states
	files  *fileStore

	// cleaning removes files of jobs in the background. Close ends clean.
	cleaning sync.WaitGroup
	clean    context.Context
	endClean context.CancelFunc

	mu sync.Mutex
	// jobs holds all jobs by id. Only this process has the folder open, so that it is
	// always what is in the store.
	jobs map[string]*entry
	// reservedBytes and reservedJobs are those of submissions in progress.
	reservedBytes int64
	reservedJobs  int
	number        uint64 // the last one of a record
	swept         time.Time
	ended         chan struct{} // receives a value when a job ends, for Notify
	turns         []string      // of all callers that may have messages, in the order of their first jobs
	submitted     chan struct{} // receives a value when a job is submitted, for Run
}

// nextNumber returns a number for the order of jobs.
func (q *Queue) nextNumber() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.number++
	return q.number
}

// change changes the record of a job durably. It returns the error of f, without a
// change, and jetstream.ErrKeyNotFound for a job that was removed. If ctx ends, the
// change may have been stored or not; the next change finds out.
func (q *Queue) change(ctx context.Context, e *entry, f func(*record) error) error {
	e.write.Lock()
	defer e.write.Unlock()
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	for try := 0; ; try++ {
		q.mu.Lock()
		r, revision := e.record, e.revision
		q.mu.Unlock()
		if revision == 0 {
			return jetstream.ErrKeyNotFound
		}
		before := r.State
		if err := f(&r); err != nil {
			return err
		}
		ends := r.State.Final() && !before.Final()
		if ends {
			r.EndNumber = q.nextNumber()
		}
		data, err := json.Marshal(r)
		if err != nil {
			return err
		}
		revision, err = q.states.Update(ctx, r.ID, data, revision)
		if err != nil {
			// An earlier change may have been stored although its answer was late.
			if errors.Is(err, jetstream.ErrKeyExists) && try == 0 && q.reload(ctx, r.ID, e) == nil {
				continue
			}
			return err
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		e.record, e.revision = r, revision
		if ends {
			e.ended = time.Now()
		}
		e.notify()
		return nil
	}
}

// notify wakes those that wait for a change. The queue's mutex must be held.
func (e *entry) notify() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// entry returns the job with an id. It returns ErrUnknown if there is none.
func (q *Queue) entry(id string) (*entry, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e := q.jobs[id]; e != nil {
		return e, nil
	}
	return nil, ErrUnknown
}

// Get returns a job. It returns ErrUnknown if there is none.
func (q *Queue) Get(id string) (Job, error) {
	e, err := q.entry(id)
	if err != nil {
		return Job{}, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return e.record.Job, nil
}

// List returns all jobs, the newest first.
func (q *Queue) List() []Job {
	q.mu.Lock()
	defer q.mu.Unlock()
	entries := slices.SortedFunc(maps.Values(q.jobs), func(a, b *entry) int { return cmp.Compare(b.record.Number, a.record.Number) })
	list := make([]Job, 0, len(entries))
	for _, e := range entries {
		list = append(list, e.record.Job)
	}
	return list
}

// Stats returns the number of jobs in each state and the bytes of all uploads and
// models.
func (q *Queue) Stats() (counts map[State]int, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	counts = map[State]int{}
	for _, e := range q.jobs {
		counts[e.record.State]++
		bytes += e.record.UploadBytes + e.record.ModelBytes
	}
	return counts, bytes
}

// Wait returns a job as soon as its revision is above after, with that revision.
// Revisions grow with each change of the job. It returns ErrUnknown for a job that
// does not exist or is removed meanwhile, and the context's cause when ctx ends.
func (q *Queue) Wait(ctx context.Context, id string, after uint64) (Job, uint64, error) {
	for {
		q.mu.Lock()
		e := q.jobs[id]
		if e == nil {
			q.mu.Unlock()
			return Job{}, 0, ErrUnknown
		}
		job, revision, changed := e.record.Job, e.revision, e.changed
		q.mu.Unlock()
		if revision > after {
			return job, revision, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Job{}, 0, context.Cause(ctx)
		}
	}
}

// Model returns a reader of the model of a job, which is usable until ctx ends. It
// returns ErrUnknown, and ErrNoModel if the job did not succeed or not yet.
func (q *Queue) Model(ctx context.Context, id string) (*Content, error) {
	job, err := q.Get(id)
	if err != nil {
		return nil, err
	}
	if job.State != Succeeded {
		return nil, fmt.Errorf("%w: its state is %s", ErrNoModel, job.State)
	}
	c, err := q.files.open(ctx, id+"/"+modelFile)
	if errors.Is(err, jetstream.ErrMsgNotFound) { // the job was removed meanwhile
		err = ErrUnknown
	}
	return c, err
}

// errEnded is returned by changes of a job that has ended already.
var errEnded = errors.New("jobs: the job has ended")

// Delete cancels a job, or removes it with its files if it has ended. It returns the
// job as it is after the cancellation, or as it was, and whether it was removed. It
// returns ErrUnknown.
func (q *Queue) Delete(ctx context.Context, id string) (job Job, removed bool, err error) {
	e, err := q.entry(id)
	if err != nil {
		return Job{}, false, err
	}
	err = q.finish(ctx, e, func(r *record) { r.end(Cancelled, "") })
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
func (q *Queue) finish(ctx context.Context, e *entry, end func(*record)) error {
	var uploads []string
	var id string
	err := q.change(context.WithoutCancel(ctx), e, func(r *record) error {
		if r.State.Final() {
			return errEnded
		}
		id, uploads = r.ID, r.Files
		end(r)
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

// removeLater removes files of a job in the background.
func (q *Queue) removeLater(id string, names []string) {
	q.cleaning.Go(func() {
		if err := errors.Join(q.removeCheckpoints(id), q.removeFiles(q.clean, id, names)); err != nil && q.clean.Err() == nil { // the next Open tries again
			q.o.Log.Warn("cannot remove the files of a job", slog.String("job", id), slog.Any("error", err))
		}
	})
}

// remove removes a job that has ended, with its files.
func (q *Queue) remove(ctx context.Context, id string) error {
	e, err := q.entry(id)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	e.write.Lock()
	defer e.write.Unlock()
	q.mu.Lock()
	gone, names := e.revision == 0, append([]string{modelFile}, e.record.Files...)
	q.mu.Unlock()
	if gone {
		return ErrUnknown
	}
	// The record is removed first: files without a record are removed at the next start.
	purge, cancel := withTimeout(ctx)
	defer cancel()
	if err := q.values.Purge(purge, jetstream.WithPurgeSubject(keySubject(id))); err != nil {
		return err
	}
	q.mu.Lock()
	delete(q.jobs, id)
	e.revision = 0
	e.notify()
	q.mu.Unlock()
	q.removeLater(id, names)
	return nil
}

// removeFiles removes files of a job.
func (q *Queue) removeFiles(ctx context.Context, id string, names []string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, q.files.remove(ctx, id+"/"+name))
	}
	return errors.Join(errs...)
}
