package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

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
	q = &Queue{o: o, lock: lock, jobs: map[string]*entry{}, ended: make(chan struct{}, 1), submitted: make(chan struct{}, 1)}
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
		Name: workStream, Subjects: []string{workSubject + "*.*"}, Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage,
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
	for subject := range waiting {
		turn, _ := splitWork(subject)
		q.addTurn(turn)
	}
	for id, e := range q.jobs {
		if e.record.State == Running {
			if err := q.change(ctx, e, died); err != nil {
				return err
			}
			q.o.Log.Warn("the service ended during a job", slog.String("job", id), slog.String("state", string(e.record.State)), slog.Int("times", e.record.Deaths))
		}
		// The process ended between the creation of the job and its message.
		if !e.record.State.Final() && waiting[workOf(&e.record)] == 0 {
			if err := q.publish(ctx, &e.record); err != nil {
				return err
			}
		}
	}
	if err := q.tidyCheckpoints(ctx); err != nil {
		return err
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
	r.requeue()
	return nil
}

// errRecord is returned, wrapped, for a damaged record.
var errRecord = errors.New("jobs: the record is damaged")

// readJobs reads all records. It removes damaged ones, so that they do not keep the
// service from starting.
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
		switch err := q.reload(ctx, id, e); {
		case errors.Is(err, errRecord): // by the disk: a record is written whole or not at all
			q.o.Log.Error("removed a job whose record is damaged", slog.String("job", id), slog.Any("error", err))
			if err := q.states.Delete(ctx, id); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		q.jobs[id] = e
		q.number = max(q.number, e.record.Number, e.record.EndNumber)
		if e.record.State.Final() {
			e.ended, e.agedBefore = time.Now(), wallAge(*e.record.EndedAt)
		}
	}
	return nil
}

// reload reads the record of a job from the store. The job may have ended there, by a
// change that was stored although its answer was late.
func (q *Queue) reload(ctx context.Context, id string, e *entry) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	v, err := q.states.Get(ctx, id)
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(v.Value(), &r); err != nil {
		return fmt.Errorf("%w: %w", errRecord, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	e.record, e.revision = r, v.Revision()
	if r.State.Final() {
		if e.ended.IsZero() {
			e.ended = time.Now()
		}
		if r.State == Cancelled && e.stop != nil {
			e.stop(ErrCancelled)
		}
		q.wakeNotify()
	}
	e.notify()
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

// IsStore reports whether a folder holds a queue and nothing else.
func IsStore(dir string) bool {
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	return err == nil && !slices.ContainsFunc(list, func(path string) bool {
		return filepath.Base(path) != server.JetStreamStoreDir && filepath.Base(path) != checkpointsDir
	})
}
