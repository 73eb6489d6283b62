package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

// startTimeout is the longest time to read all records.
const startTimeout = 2 * time.Minute

// Open opens the queue in the store of a broker, which must outlive it. In a folder, jobs that
// were running when the process ended are queued again, and uploads that were not accepted are
// removed. In a cluster that is done while the queue is used; see Keep and Run.
func Open(ctx context.Context, b *broker.Broker, o Options) (q *Queue, err error) {
	q = &Queue{
		o: o, b: b, node: b.Node(), jobs: map[string]*entry{}, removed: map[string]uint64{}, attended: map[string]time.Time{}, keys: map[string]chan struct{}{},
		work: map[string]jetstream.Stream{}, ended: make(chan struct{}, 1), arrived: make(chan struct{}),
		ackWait: ackWait, heartbeat: heartbeat,
	}
	if !b.Embedded() {
		q.ackWait = clusterAckWait
	}
	q.clean, q.endClean = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, q.Close())
		}
	}()
	if err = q.openStores(ctx); err == nil && b.Embedded() {
		err = q.recover(ctx)
	} else if err == nil {
		err = q.join(ctx)
	}
	if err != nil && b.Embedded() {
		return q, fmt.Errorf("the jobs in %s cannot be read: %w", b.Dir(), err)
	}
	if err != nil {
		return q, fmt.Errorf("the jobs cannot be read: %w", err)
	}
	return q, nil
}

// openStores creates the streams, or opens those of earlier processes.
func (q *Queue) openStores(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, err = q.stream(ctx, KindTrain); err != nil {
		return err
	}
	if q.states, err = q.b.KeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket}); err != nil {
		return err
	}
	if q.files, err = q.b.Files(ctx, bucket); err != nil {
		return err
	}
	if !q.b.Embedded() {
		q.saved, err = q.b.Files(ctx, checkpointsBucket)
		return err
	}
	q.values, err = q.b.JetStream.Stream(ctx, "KV_"+bucket)
	return err
}

// streamOf returns the name of the stream with the messages of a kind, which is also the first
// part of their subjects.
func streamOf(kind string) string {
	if kind == "" || kind == KindTrain {
		return workStream
	}
	return workStream + "-" + kind
}

// stream returns the stream with the messages of a kind, and creates it if necessary.
func (q *Queue) stream(ctx context.Context, kind string) (jetstream.Stream, error) {
	kind = cmp.Or(kind, KindTrain)
	q.mu.Lock()
	s := q.work[kind]
	q.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := q.b.Stream(ctx, jetstream.StreamConfig{
		Name: streamOf(kind), Subjects: []string{workPrefix(kind) + "*.*"}, Retention: jetstream.WorkQueuePolicy,
		MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
	})
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.work[kind] = s
	return s, nil
}

// waiting returns the subjects of the messages of the kinds of all jobs.
func (q *Queue) waiting(ctx context.Context) (map[string]uint64, error) {
	kinds := []string{KindTrain}
	q.mu.Lock()
	for _, e := range q.jobs {
		if kind := cmp.Or(e.record.Kind, KindTrain); !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	q.mu.Unlock()
	all := map[string]uint64{}
	for _, kind := range kinds {
		s, err := q.stream(ctx, kind)
		if err != nil {
			return nil, err
		}
		subjects, _, err := q.b.Subjects(ctx, s, ">")
		if err != nil {
			return nil, err
		}
		for subject, n := range subjects {
			all[subject] = n
			turn, _ := splitWork(subject)
			q.addTurn(turn)
		}
	}
	return all, nil
}

// recover reads the jobs of an earlier process and repairs what it left undone.
func (q *Queue) recover(ctx context.Context) error {
	if err := q.readJobs(ctx); err != nil {
		return err
	}
	waiting, err := q.waiting(ctx)
	if err != nil {
		return err
	}
	for id, e := range q.jobs {
		if e.record.State == Running {
			q.countRedelivery(e.record.Kind)
			if err := q.change(ctx, e, died); err != nil {
				return err
			}
			q.o.Log.Warn("the service ended during a job", slog.String("job", id), slog.String("state", string(e.record.State)), slog.Int("times", e.record.Deaths))
		}
		// The process ended between the creation of the job and its message.
		if !e.record.State.Final() && waiting[workOf(&e.record)] == 0 {
			if err := q.publish(ctx, &e.record, id); err != nil {
				return err
			}
		}
	}
	if err := q.tidyCheckpoints(ctx); err != nil {
		return err
	}
	removed, err := q.files.Tidy(ctx, func(name string) bool {
		e := q.jobs[idOf(name)]
		return e != nil && e.record.keeps(name)
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
		r.Files, r.UploadBytes, r.Runner = nil, 0, ""
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
		if e.record.State.Final() {
			e.agedBefore = wallAge(*e.record.EndedAt)
		}
	}
	return nil
}

// reload reads the record of a job from the store. The job may have ended there, by another
// node, or by a change that was stored although its answer was late.
func (q *Queue) reload(ctx context.Context, id string, e *entry) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	v, err := q.b.Get(ctx, q.states, id)
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(v.Value(), &r); err != nil {
		return fmt.Errorf("%w: %w", errRecord, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if v.Revision() > e.revision || q.b.Embedded() {
		q.set(e, r, v.Revision())
	}
	return nil
}

// Close stops the queue. Run, Notify and Keep must have returned. Files that are not removed
// yet are removed by the next Open, or by Keep.
func (q *Queue) Close() error {
	q.endClean()
	q.cleaning.Wait()
	return nil
}

// IsStore reports whether a folder holds a queue and nothing else.
func IsStore(dir string) bool {
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	return err == nil && !slices.ContainsFunc(list, func(path string) bool {
		return filepath.Base(path) != server.JetStreamStoreDir && filepath.Base(path) != checkpointsDir
	})
}
