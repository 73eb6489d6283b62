package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/models"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// bucket is the name of the key-value bucket with a record for each model, and of the
	// object store of their files.
	bucket = "models"
	// maxMetadata is the maximum size of a model's metadata in JSON, and maxRecord that of a
	// record, in bytes: a message of a NATS server has 1 MiB by default.
	maxMetadata = 512 << 10
	maxRecord   = 960 << 10
	// lookTimeout bounds the look-up of a name that this process does not know.
	lookTimeout = 3 * time.Second
	// maxTries bounds how often a change is tried again that others overtook.
	maxTries = 20
	// changedPause is the pause before a try again.
	changedPause = 5 * time.Millisecond
	// maxRemoved is the maximum number of deleted names whose last revisions are kept.
	maxRemoved = 10000
	// removalTime is the longest time that Close waits for the removal of files.
	removalTime = 3 * time.Second
)

// ErrTooLarge is returned when a model's metadata is too large for the record of a model.
var ErrTooLarge = errors.New("the model's metadata is too large to be stored in a cluster")

// SharedOptions are options of OpenShared.
type SharedOptions struct {
	Options
	// CacheDir is a folder with copies of model files, of at most CacheBytes together. No other
	// process may use it.
	CacheDir   string
	CacheBytes int64
	// Changed is called when a model has another current version than before, by this process
	// or another, or is deleted: now is the zero Entry then. before is the zero Entry for a
	// new model. It must not block. It may be nil.
	Changed func(before, now Entry)
}

// Shared is a Registry in a NATS cluster. Each process has all records in memory, which a watch
// keeps current, and reads files when they are needed. Changes are compare-and-set on the
// record of a model. It may be used concurrently and must be closed.
type Shared struct {
	b       *broker.Broker
	kv      jetstream.KeyValue
	files   *broker.Files
	cache   *fileCache
	limits  models.Limits
	options SharedOptions
	log     *slog.Logger

	mu      sync.RWMutex
	known   map[string]*known // by name
	removed int               // deleted ones in known

	ready    chan struct{}   // closed when known has all models
	removing context.Context // of removals of files
	stop     context.CancelFunc
	abandon  context.CancelFunc // ends removing
	tasks    sync.WaitGroup
	ended    sync.Once
}

// known is what a process knows about a name.
type known struct {
	record   sharedRecord
	revision uint64
	removed  bool // at this revision or a later one
	broken   string
	entry    Entry
}

// sharedRecord is the value of a model's key.
type sharedRecord struct {
	// Key is as Entry.Key.
	Key string `json:"key"`
	// By is different in each written value, so that a writer recognizes its own.
	By string `json:"by"`
	// Versions are the versions, the newest, which is the current one, first.
	Versions []sharedVersion  `json:"versions"`
	Metadata *models.Metadata `json:"metadata"` // of the current version
}

type sharedVersion struct {
	storedVersion
	Format models.Format `json:"format"`
	// File is the name of the version's file in the object store. A file that is stored again
	// has another name, so that one that is being removed is not meant.
	File string `json:"file"`
}

// OpenShared opens the models of a cluster. It does not wait until they are read; Load and Get
// do.
func OpenShared(ctx context.Context, b *broker.Broker, limits models.Limits, o SharedOptions, log *slog.Logger) (*Shared, error) {
	kv, err := b.KeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	stored, err := b.Files(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	cache, err := openFileCache(o.CacheDir, o.CacheBytes)
	if err != nil {
		return nil, err
	}
	r := &Shared{b: b, kv: kv, files: stored, cache: cache, limits: limits, options: o, log: log, known: map[string]*known{}, ready: make(chan struct{})}
	watching, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.removing, r.abandon = context.WithCancel(context.Background())
	r.tasks.Go(func() {
		b.Watch(watching, bucket, r.changed, sync.OnceFunc(func() { close(r.ready) }))
	})
	r.tasks.Go(func() { b.Lead(watching, "tidy-models", r.tidy) })
	return r, nil
}

// Close ends the watch and releases the folder of the cache. It leaves the broker open. Files that
// cannot be removed soon are removed later, by tidy.
func (r *Shared) Close() (err error) {
	r.ended.Do(func() {
		r.stop()
		defer r.abandon()
		defer time.AfterFunc(removalTime, r.abandon).Stop()
		r.tasks.Wait()
		err = r.cache.close()
	})
	return err
}

// Hold implements Registry. Nothing that is kept about a model is in a folder.
func (r *Shared) Hold() (release func()) { return func() {} }

// changed takes over a change of a record.
func (r *Shared) changed(c broker.Change) {
	if c.Removed {
		r.forget(c.Key, c.Revision)
		return
	}
	r.learn(c.Key, c.Value, c.Revision)
}

// learn takes over a record, unless a later one is known.
func (r *Shared) learn(name string, value []byte, revision uint64) {
	if CheckName(name) != nil {
		return // not by this program
	}
	k := &known{revision: revision}
	if err := json.Unmarshal(value, &k.record); err != nil || len(k.record.Versions) == 0 || k.record.Key == "" {
		k.record = sharedRecord{}
		k.broken = "its record in the cluster is damaged"
		r.log.Error("a model cannot be used", slog.String("name", name), slog.Uint64("revision", revision), slog.Any("error", err))
	}
	k.entry = k.describe(name)
	r.mu.Lock()
	old := r.known[name]
	if old != nil && old.revision >= revision {
		r.mu.Unlock()
		return
	}
	r.known[name] = k
	var before Entry
	if old != nil && old.removed {
		r.removed--
	} else if old != nil {
		before = old.entry
	}
	r.mu.Unlock()
	r.report(before, k.entry)
}

// forget takes over the removal of a record at a revision, unless a later one is known. The
// revision is kept: a record that was read before the removal must not come back.
func (r *Shared) forget(name string, revision uint64) {
	r.mu.Lock()
	old := r.known[name]
	if old != nil && old.revision > revision {
		r.mu.Unlock()
		return
	}
	r.setRemoved(name, revision)
	r.mu.Unlock()
	if old != nil && !old.removed {
		r.report(old.entry, Entry{})
	}
}

// setRemoved marks a name as removed at a revision. The caller has the lock mu.
func (r *Shared) setRemoved(name string, revision uint64) {
	if r.removed >= maxRemoved {
		maps.DeleteFunc(r.known, func(_ string, k *known) bool { return k.removed })
		r.removed = 0
	}
	if old := r.known[name]; old == nil || !old.removed {
		r.removed++
	}
	r.known[name] = &known{revision: revision, removed: true}
}

func (r *Shared) report(before, now Entry) {
	if r.options.Changed != nil && (before.SHA256 != now.SHA256 || before.Key != now.Key) {
		r.options.Changed(before, now)
	}
}

// describe returns the entry of a record.
func (k *known) describe(name string) Entry {
	e := Entry{Key: k.record.Key, Name: name, State: Broken, Error: k.broken}
	if len(k.record.Versions) == 0 {
		return e
	}
	v := k.record.Versions[0]
	e.SHA256, e.Format, e.Bytes, e.Modified, e.file = v.SHA256, v.Format, v.Bytes, v.CreatedAt, v.File
	if k.record.Metadata == nil {
		e.Error = "its record in the cluster has no metadata"
	}
	if e.Error == "" {
		e.State, e.Metadata = Ready, k.record.Metadata
	}
	return e
}

// List implements Registry.
func (r *Shared) List() []Entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	list := make([]Entry, 0, len(r.known))
	for _, k := range r.known {
		if !k.removed {
			list = append(list, k.entry)
		}
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// peek returns what this process knows about a name, or nil.
func (r *Shared) peek(name string) *known {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if k := r.known[name]; k != nil && !k.removed {
		return k
	}
	return nil
}

// look returns what is known about a name. It asks the cluster about a name that this process
// does not know: it may have been stored a moment ago.
func (r *Shared) look(ctx context.Context, name string) (*known, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if k := r.peek(name); k != nil {
		return k, nil
	}
	return r.refresh(ctx, name)
}

// refresh reads the record of a model from the cluster.
func (r *Shared) refresh(ctx context.Context, name string) (*known, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, broker.ErrUnavailable)
	defer cancel()
	before := r.peek(name)
	e, err := r.b.Get(ctx, r.kv, name)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		if before != nil && r.peek(name) == before {
			r.forget(name, before.revision)
		}
		return nil, fmt.Errorf("%w: %s", ErrUnknown, name)
	case err != nil:
		return nil, fmt.Errorf("registry: %w", err)
	}
	r.learn(name, e.Value(), e.Revision())
	if k := r.peek(name); k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrUnknown, name)
}

// Look implements Registry.
func (r *Shared) Look(ctx context.Context, name string) (Entry, error) {
	k, err := r.look(ctx, name)
	if err != nil {
		return Entry{}, err
	}
	return k.entry, nil
}

// Get implements Registry.
func (r *Shared) Get(ctx context.Context, name string) (Entry, error) {
	e, err := r.Look(ctx, name)
	if err == nil && e.State != Ready {
		err = fmt.Errorf("%w: %s: %s", ErrBroken, name, e.Error)
	}
	if err != nil {
		return Entry{}, err
	}
	return e, nil
}

// Refresh looks a model up in the cluster itself, whatever this process knows, and returns its
// entry.
func (r *Shared) Refresh(ctx context.Context, name string) (Entry, error) {
	if err := CheckName(name); err != nil {
		return Entry{}, err
	}
	k, err := r.refresh(ctx, name)
	if err != nil {
		return Entry{}, err
	}
	return k.entry, nil
}

// Versions implements Registry.
func (r *Shared) Versions(ctx context.Context, name string) ([]Version, error) {
	k, err := r.look(ctx, name)
	if err != nil {
		return nil, err
	}
	out := make([]Version, len(k.record.Versions))
	for i, v := range k.record.Versions {
		out[i] = v.version(k.entry)
	}
	return out, nil
}

// Current implements Registry.
func (r *Shared) Current(ctx context.Context, name string) (Version, error) {
	list, err := r.Versions(ctx, name)
	switch {
	case err != nil:
		return Version{}, err
	case len(list) == 0:
		return Version{}, fmt.Errorf("%w: %s has no version", ErrBroken, name)
	}
	return list[0], nil
}

// Load implements Registry. Without use it only waits until the models are known.
func (r *Shared) Load(ctx context.Context, use func(*models.Model) error) {
	select {
	case <-r.ready:
	case <-ctx.Done():
		return
	}
	if use == nil {
		return
	}
	for _, e := range r.List() {
		if ctx.Err() != nil {
			return
		}
		if e.State != Ready {
			continue
		}
		data, err := r.Bytes(ctx, e)
		var m *models.Model
		if err == nil {
			m, err = models.Read(data, r.limits)
		}
		if err == nil {
			err = use(m)
		}
		if err != nil && ctx.Err() == nil {
			r.log.Error("a model cannot be used", slog.String("name", e.Name), slog.Any("error", err))
		}
	}
}

// Loaded implements Registry: all models of the cluster are known.
func (r *Shared) Loaded() bool {
	select {
	case <-r.ready:
		return true
	default:
		return false
	}
}
