package jobs

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/deepmed/anomaly/internal/files"
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
	workSubject = "jobs.work."
	// workStream is the name of their stream.
	workStream = "jobs"
	// modelFile is the name of a job's model among its files.
	modelFile = "model"
	// modelReserve is the part of MaxBytes that is reserved for the model of each
	// unfinished job.
	modelReserve = 64 << 20
	// spareDisk is what must remain of the disk. JetStream stops when the disk is full.
	spareDisk = 64 << 20
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
	swept         time.Time
	ended         chan struct{} // receives a value when a job ends, for Notify
}

// Open opens the queue in a folder. Jobs that were running when the process ended are
// queued again, and uploads that were not accepted are removed. Open returns ErrInUse,
// wrapped, when another process has the folder open.
func Open(ctx context.Context, o Options) (q *Queue, err error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.Open(o.Dir)
	if err != nil {
		return nil, err
	}
	q = &Queue{o: o, lock: lock, jobs: map[string]*entry{}, ended: make(chan struct{}, 1)}
	q.clean, q.endClean = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, q.Close())
		}
	}()
	if err := files.TryLock(lock); err != nil {
		if errors.Is(err, files.ErrLocked) {
			err = fmt.Errorf("%w: %s", ErrInUse, o.Dir)
		}
		return q, err
	}
	if q.server, q.conn, err = startServer(o.Dir, o.Log); err != nil {
		return q, fmt.Errorf("the jobs in %s cannot be read: %w", o.Dir, err)
	}
	if err := q.openStreams(ctx); err != nil {
		return q, fmt.Errorf("the jobs in %s cannot be read: %w", o.Dir, err)
	}
	if err := q.recover(ctx); err != nil {
		return q, fmt.Errorf("the jobs in %s cannot be read: %w", o.Dir, err)
	}
	return q, nil
}

// openStreams creates the streams, or opens those of an earlier process.
func (q *Queue) openStreams(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if q.js, err = jetstream.New(q.conn, jetstream.WithDefaultTimeout(time.Minute)); err != nil {
		return err
	}
	if q.work, err = q.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: workStream, Subjects: []string{workSubject + "*"}, Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage,
		MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
	}); err != nil {
		return err
	}
	if q.states, err = q.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, Storage: jetstream.FileStorage}); err != nil {
		return err
	}
	if q.values, err = q.js.Stream(ctx, "KV_"+bucket); err != nil {
		return err
	}
	if _, err = q.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: bucket, Storage: jetstream.FileStorage}); err != nil {
		return err
	}
	stream, err := q.js.Stream(ctx, "OBJ_"+bucket)
	q.files = &fileStore{q.js, stream}
	return err
}

// recover reads the jobs of an earlier process and repairs what it left undone.
func (q *Queue) recover(ctx context.Context) error {
	if err := q.readJobs(ctx); err != nil {
		return err
	}
	waiting, err := subjectsOf(ctx, q.work)
	if err != nil {
		return err
	}
	for id, e := range q.jobs {
		if e.record.State == Running {
			if err := q.change(ctx, e, died); err != nil {
				return err
			}
			q.o.Log.Warn("the service ended during a job", slog.String("job", id), slog.String("state", string(e.record.State)), slog.Int("times", e.record.Deaths))
		}
		// The process ended between the creation of the job and its message.
		if !e.record.State.Final() && waiting[workSubject+id] == 0 {
			if err := q.publish(ctx, id); err != nil {
				return err
			}
		}
	}
	removed, err := q.files.tidy(ctx, func(name string) bool {
		id, file, _ := strings.Cut(name, "/")
		e := q.jobs[id]
		return e != nil && (slices.Contains(e.record.Files, file) || file == modelFile && e.record.State == Succeeded)
	})
	if removed > 0 {
		q.o.Log.Warn("removed files of jobs that were not accepted or have ended", slog.Int("removed", removed))
	}
	return err
}

// died changes the record of a job that was running when the process ended.
func died(r *record) error {
	if r.Deaths++; r.Deaths >= maxDeaths {
		r.end(Failed, fmt.Sprintf("The service ended %d times during this job, which was not tried again", r.Deaths))
		r.Files, r.UploadBytes = nil, 0
		return nil
	}
	r.State, r.StartedAt, r.Progress = Queued, nil, Progress{}
	return nil
}

// readJobs reads all records.
func (q *Queue) readJobs(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	keys, err := q.states.ListKeys(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = keys.Stop() }()
	var ids []string
	for id := range keys.Keys() {
		ids = append(ids, id)
	}
	for _, id := range ids {
		e := &entry{changed: make(chan struct{})}
		if err := q.reload(ctx, id, e); err != nil {
			return err
		}
		q.jobs[id] = e
	}
	return nil
}

// reload reads the record of a job from the store.
func (q *Queue) reload(ctx context.Context, id string, e *entry) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	v, err := q.states.Get(ctx, id)
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(v.Value(), &r); err != nil {
		return fmt.Errorf("jobs: the record of %s: %w", id, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	e.record, e.revision = r, v.Revision()
	return nil
}

// Close stops the queue and releases its folder. Run and Notify must have returned.
// Files that are not removed yet are removed by the next Open.
func (q *Queue) Close() error {
	q.endClean()
	q.cleaning.Wait()
	if q.conn != nil {
		q.conn.Close()
	}
	if q.server != nil {
		q.server.Shutdown()
		q.server.WaitForShutdown()
	}
	return q.lock.Close()
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
		if err := f(&r); err != nil {
			return err
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
		e.notify()
		return nil
	}
}

// notify wakes those that wait for a change. The queue's mutex must be held.
func (e *entry) notify() {
	close(e.changed)
	e.changed = make(chan struct{})
}

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
	rec := record{Job: Job{ID: newID(), Kind: r.Kind, Name: r.Name, State: Queued, CreatedAt: time.Now().UTC(), Warnings: []string{}}, Fields: r.Fields, Callback: r.Callback}
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
		err = q.publish(ctx, r.ID)
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
func (q *Queue) publish(ctx context.Context, id string) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	_, err := q.js.Publish(ctx, workSubject+id, nil, jetstream.WithMsgID(id))
	return err
}

// reserve reserves the place of a job with uploads of n bytes.
func (q *Queue) reserve(ctx context.Context, n int64) error {
	free, err := freeDisk(q.o.Dir)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.bytes()+q.reservedBytes+n+modelReserve > q.o.MaxBytes {
			return ErrFull
		}
		if n+q.reservedBytes+spareDisk > free {
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
	slices.SortFunc(list, func(a, b *entry) int { return a.record.EndedAt.Compare(*b.record.EndedAt) })
	return list
}

// freeDisk returns the bytes that are left on the disk of a folder.
func freeDisk(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
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
			if now.Sub(*e.record.EndedAt) > q.o.MaxAge {
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
	list := make([]Job, 0, len(q.jobs))
	for _, e := range q.jobs {
		list = append(list, e.record.Job)
	}
	slices.SortFunc(list, func(a, b Job) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), strings.Compare(a.ID, b.ID))
	})
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
	select {
	case q.ended <- struct{}{}:
	default:
	}
	q.removeLater(id, uploads)
	return nil
}

// removeLater removes files of a job in the background.
func (q *Queue) removeLater(id string, names []string) {
	q.cleaning.Go(func() {
		if err := q.removeFiles(q.clean, id, names); err != nil && q.clean.Err() == nil { // the next Open tries again
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

// IsStore reports whether a folder holds a queue and nothing else.
func IsStore(dir string) bool {
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	return err == nil && !slices.ContainsFunc(list, func(path string) bool { return filepath.Base(path) != server.JetStreamStoreDir })
}
