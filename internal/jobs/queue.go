package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/nats-io/nats.go/jetstream"
)

// Options configure a Queue.
type Options struct {
	// MaxJobs is the maximum number of jobs. For a new one beyond it, the job that
	// ended first is removed. In a cluster this and MaxBytes hold nearly: each node counts the
	// jobs that it has heard of.
	MaxJobs int
	// MaxAge is how long a job is kept after its end; 0 means no limit.
	MaxAge time.Duration
	// MaxBytes is the maximum size of all uploads and models together.
	MaxBytes int64
	Log      *slog.Logger
}

// KindTrain is the kind of the jobs that train a model. Their result is the model; jobs of
// other kinds have results.
const KindTrain = "train"

const (
	// bucket is the name of the object store and of the key-value store.
	bucket = "jobs"
	// workStream is the name of the stream with the messages of trainings. Those of other
	// kinds have a dash and the kind behind it.
	workStream = "jobs"
	// modelFile is the name of a job's result among its files.
	modelFile = "model"
	// modelReserve is the part of MaxBytes that is reserved for the result of each
	// unfinished job.
	modelReserve = 64 << 20
	// SpareDisk is what must remain of the disk, in bytes, whoever writes to it. JetStream
	// stops when the disk is full.
	SpareDisk = 64 << 20
	// ackWait is the time after which a message is delivered again if the worker does
	// not report that the job is in progress, and clusterAckWait that in a cluster, where
	// another node waits for it.
	ackWait        = time.Minute
	clusterAckWait = 30 * time.Second
	// maxDeaths is the number of times that a job may end the process. Then it fails.
	maxDeaths = 3
	// storeTimeout bounds an operation of the store.
	storeTimeout = broker.Timeout
	// maxConflicts is the maximum number of tries to change a record that others change.
	maxConflicts = 30
)

// workPrefix is the prefix of the subjects of messages of a kind, one for each unfinished job.
// The turn of its caller follows, a dot, and its id.
func workPrefix(kind string) string { return streamOf(kind) + ".work." }

// withTimeout bounds an operation of the store.
func withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, storeTimeout)
}

// entry is a job in memory.
type entry struct {
	write sync.Mutex // held while the record is changed in the store

	// The queue's mutex guards the rest.
	record   record
	revision uint64                  // of the record in the store
	changed  chan struct{}           // closed when the record changes or is removed
	stop     context.CancelCauseFunc // cancels the running job; nil if none runs in this process
	attempt  int                     // that runs in this process of a cluster; 0 before it has started
	// ended is when the job ended, or when Open read a job that had ended: agedBefore was
	// its age then.
	ended      time.Time
	agedBefore time.Duration
}

// Queue is a queue of jobs. It may be used concurrently and must be closed.
type Queue struct {
	o    Options
	b    *broker.Broker
	node string // the id of this process in a cluster
	// ackWait is ackWait or clusterAckWait, and heartbeat the time between two reports that a
	// job is in progress.
	ackWait, heartbeat time.Duration

	states jetstream.KeyValue
	values jetstream.Stream // of states, in a folder
	files  *broker.Files
	saved  *broker.Files // the checkpoints of a cluster

	// cleaning does work in the background: it removes files of jobs, and follows the
	// records of a cluster. Close ends clean.
	cleaning sync.WaitGroup
	clean    context.Context
	endClean context.CancelFunc

	mu   sync.Mutex
	work map[string]jetstream.Stream // by kind
	// jobs holds all jobs by id. In a folder, which only this process has open, it is always
	// what is in the store. In a cluster it follows the store.
	jobs        map[string]*entry
	removed     map[string]uint64        // revisions of the removals of jobs in a cluster
	current     bool                     // all records of a cluster were read
	redelivered map[string]int           // jobs whose runner was gone, by kind
	attended    map[string]time.Time     // the jobs that a request of this process waits for, and until when; zero for no limit
	keys        map[string]chan struct{} // ids of the submissions with a key in progress; closed at their ends
	// reservedBytes and reservedJobs are those of submissions in progress.
	reservedBytes int64
	reservedJobs  int
	number        uint64 // the last one of a record
	changes       uint64 // of records by this process
	swept         time.Time
	ended         chan struct{} // receives a value when a job ends, for Notify
	turns         []string      // of all callers that may have messages, in the order of their first jobs
	arrived       chan struct{} // closed when a job is queued, for Run
}

// nextNumber returns a number for the order of jobs.
func (q *Queue) nextNumber() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.number++
	return q.number
}

// change changes the record of a job durably. It returns the error of f, without a
// change, and jetstream.ErrKeyNotFound for a job that was removed. If it returns
// broker.ErrUnavailable or ctx ends, the change may have been stored or not; the next change
// finds out. f may be called several times.
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
		if !q.b.Embedded() {
			r.Change = q.nextChange()
		}
		data, err := json.Marshal(r)
		if err != nil {
			return err
		}
		revision, err = q.b.Update(ctx, q.states, r.ID, data, revision)
		if err != nil {
			// Another node has changed it; or an earlier change was stored although its answer
			// was late.
			if errors.Is(err, jetstream.ErrKeyExists) && (try == 0 || !q.b.Embedded() && try < maxConflicts) {
				again := q.reload(ctx, r.ID, e)
				if again == nil {
					continue
				}
				if !q.b.Embedded() {
					return again
				}
			}
			return err
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		if revision > e.revision { // else the change and later ones were read meanwhile
			e.record, e.revision = r, revision
		}
		if ends {
			e.ended = time.Now()
		}
		e.notify()
		return nil
	}
}

// nextChange returns a text that no other change of a record has.
func (q *Queue) nextChange() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.changes++
	return q.node + "." + strconv.FormatUint(q.changes, 10)
}

// notify wakes those that wait for a change. The queue's mutex must be held.
func (e *entry) notify() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// entry returns the job with an id. It returns ErrUnknown if there is none.
func (q *Queue) entry(id string) (*entry, error) {
	q.mu.Lock()
	e := q.jobs[id]
	q.mu.Unlock()
	switch {
	case e != nil:
		return e, nil
	case q.b.Embedded():
		return nil, ErrUnknown
	}
	return q.fetch(id)
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
	entries := slices.SortedFunc(maps.Values(q.jobs), func(a, b *entry) int {
		return cmp.Or(cmp.Compare(b.record.Number, a.record.Number), b.record.CreatedAt.Compare(a.record.CreatedAt), cmp.Compare(b.record.ID, a.record.ID))
	})
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
		e, err := q.entry(id)
		if err != nil {
			return Job{}, 0, err
		}
		q.mu.Lock()
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
	return q.result(ctx, id, true)
}

// Results returns a reader of the results of a job whose kind is not KindTrain, which is usable
// until ctx ends. It returns ErrUnknown, and ErrNoResults if the job did not succeed or not yet.
func (q *Queue) Results(ctx context.Context, id string) (*Content, error) {
	return q.result(ctx, id, false)
}

func (q *Queue) result(ctx context.Context, id string, model bool) (*Content, error) {
	e, err := q.entry(id)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	r := e.record
	q.mu.Unlock()
	if !r.State.Final() && !q.b.Embedded() {
		// The client may have heard of the end from another node.
		if err := q.reload(ctx, id, e); errors.Is(err, jetstream.ErrKeyNotFound) {
			return nil, ErrUnknown
		} else if err != nil {
			return nil, err
		}
		q.mu.Lock()
		r = e.record
		q.mu.Unlock()
	}
	missing := ErrNoModel
	if !model {
		missing = ErrNoResults
	}
	switch {
	case model != (cmp.Or(r.Kind, KindTrain) == KindTrain):
		return nil, fmt.Errorf("%w: its kind is %s", missing, r.Kind)
	case r.State != Succeeded:
		return nil, fmt.Errorf("%w: its state is %s", missing, r.State)
	}
	c, err := q.files.Open(ctx, r.result())
	if errors.Is(err, broker.ErrNotFound) { // the job was removed meanwhile
		err = ErrUnknown
	}
	return c, err
}

// Outcome returns Result.Meta of a job that has succeeded, or the code of the error of one that
// has failed (see Coded), and 0 if it had none. It returns ErrUnknown.
func (q *Queue) Outcome(id string) (meta map[string]string, code int, err error) {
	e, err := q.entry(id)
	if err != nil {
		return nil, 0, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return e.record.Meta, e.record.Code, nil
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
