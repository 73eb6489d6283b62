package monitor

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/registry"
)

const (
	// saveInterval is the interval at which changed monitors are written.
	saveInterval = 2 * time.Second
	// lookTimeout bounds the look-up of a model.
	lookTimeout = 5 * time.Second
	// saveTimeout bounds the writing of a monitor, and closeTimeout that of all monitors at the
	// end, so that servers that do not answer do not delay a shutdown.
	saveTimeout  = 20 * time.Second
	closeTimeout = 10 * time.Second
)

// Store keeps monitors. NewFolder and NewShared return one.
type Store interface {
	// open prepares a new monitor, with what is kept about its model.
	open(m *Monitor)
	// save writes a monitor that has changed. The caller holds the registry and m.saving.
	save(ctx context.Context, m *Monitor) error
	// summary returns the summary of all verdicts on a model.
	summary(ctx context.Context, m *Monitor) (Summary, error)
	// reset begins the test anew. The caller holds the registry and m.saving.
	reset(ctx context.Context, m *Monitor) error
	// leave is called when the process writes the monitor no more.
	leave(ctx context.Context, m *Monitor) error
	// remove removes what is kept about a model that is deleted.
	remove(ctx context.Context, key string) error
	close()
}

// Set has the monitors of the current versions of a registry's models. It may be used
// concurrently and must be closed.
type Set struct {
	registry registry.Registry
	store    Store
	log      *slog.Logger
	opening  sync.Mutex // held while a monitor is opened; locked before the registry is held
	mu       sync.RWMutex
	monitors map[string]*Monitor // by the model's name
	running  context.Context     // ends when Close begins
	ending   time.Duration       // as closeTimeout
	stop     context.CancelFunc
	stopped  sync.Once
	saver    sync.WaitGroup
}

// NewSet returns the monitors of a registry's models, which are kept in a store.
func NewSet(r registry.Registry, s Store, log *slog.Logger) *Set {
	set := &Set{registry: r, store: s, log: log, monitors: map[string]*Monitor{}, ending: closeTimeout}
	set.running, set.stop = context.WithCancel(context.Background())
	set.saver.Go(func() {
		tick := time.NewTicker(saveInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				set.Save()
			case <-set.running.Done():
				return
			}
		}
	})
	return set
}

// Close writes all monitors, within closeTimeout. No verdict may be observed afterwards. It
// may be called more than once.
func (s *Set) Close() {
	s.stopped.Do(func() {
		s.stop()
		s.saver.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), s.ending)
		defer cancel()
		s.saveAll(ctx)
		for _, m := range s.All() {
			if err := s.store.leave(ctx, m); err != nil {
				s.log.Warn("cannot write the verdicts of a model", slog.String("name", m.name), slog.Any("error", err))
			}
		}
		s.store.close()
	})
}

// All returns the open monitors.
func (s *Set) All() []*Monitor {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*Monitor, 0, len(s.monitors))
	for _, m := range s.monitors {
		list = append(list, m)
	}
	return list
}

// Of returns the monitor of a model's version, or nil if that is not the current version
// any more. It opens the monitor if necessary; the service does so before the first
// verdict, except while it still reads its models.
func (s *Set) Of(name, sha256 string) *Monitor {
	if m := s.existing(name); m != nil && m.is(sha256) {
		return m
	}
	return s.open(name, sha256)
}

func (s *Set) existing(name string) *Monitor {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.monitors[name]
}

// open opens the monitor of a model's current version. A version that only has another
// threshold continues the monitor of the version before. It returns nil if the current
// version is not that with the SHA-256.
func (s *Set) open(name, sha256 string) *Monitor {
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	s.opening.Lock()
	defer s.opening.Unlock()
	defer s.registry.Hold()() // so that no monitor of a deleted model is added
	e, err := s.registry.Look(ctx, name)
	if err != nil || e.SHA256 != sha256 || e.State != registry.Ready {
		return nil
	}
	v, err := s.registry.Current(ctx, name)
	if err != nil || v.SHA256 != sha256 {
		return nil
	}
	before := s.existing(name)
	if before != nil && before.key == e.Key && before.since.Equal(v.Since) {
		before.mu.Lock()
		before.sha256 = sha256
		before.mu.Unlock()
		return before
	}
	m := newMonitor(e.Key, name, v, e.Metadata)
	s.store.open(m)
	s.mu.Lock()
	s.monitors[name] = m
	s.mu.Unlock()
	return m
}

// OpenAll opens the monitors of all models that have been read.
func (s *Set) OpenAll() {
	for _, e := range s.registry.List() {
		if e.State == registry.Ready {
			s.Of(e.Name, e.SHA256)
		}
	}
}

// Save writes the monitors that have changed since the last time. One that cannot be
// written is tried again.
func (s *Set) Save() { s.saveAll(s.running) }

func (s *Set) saveAll(ctx context.Context) {
	for _, m := range s.All() {
		err := s.save(ctx, m)
		if err != nil && s.running.Err() != nil && errors.Is(err, context.Canceled) {
			return // Close writes it
		}
		m.mu.Lock()
		first := !m.warned
		m.warned = err != nil
		m.mu.Unlock()
		if err != nil && first {
			s.log.Warn("cannot write the verdicts of a model", slog.String("name", m.name), slog.Any("error", err))
		}
	}
}

func (s *Set) save(ctx context.Context, m *Monitor) error {
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	m.saving.Lock()
	defer m.saving.Unlock()
	defer s.registry.Hold()() // so that a deleted model's folder does not come back
	if !s.current(ctx, m) {
		return nil
	}
	return s.store.save(ctx, m)
}

// current reports whether a monitor is that of a model that exists. It forgets the monitor
// if the model is deleted.
func (s *Set) current(ctx context.Context, m *Monitor) bool {
	e, err := s.registry.Look(ctx, m.name)
	gone := errors.Is(err, registry.ErrUnknown) || err == nil && e.Key != m.key
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.monitors[m.name] != m {
		return false
	}
	if gone {
		delete(s.monitors, m.name)
	}
	return !gone
}

// Summary returns the summary of all verdicts on the model of a monitor.
func (s *Set) Summary(ctx context.Context, m *Monitor) (Summary, error) {
	return s.store.summary(ctx, m)
}

// Reset begins the test for a drift anew and returns its state.
func (s *Set) Reset(ctx context.Context, m *Monitor) (Drift, error) {
	err := func() error {
		m.saving.Lock()
		defer m.saving.Unlock()
		defer s.registry.Hold()()
		if !s.current(ctx, m) {
			return registry.ErrChanged
		}
		return s.store.reset(ctx, m)
	}()
	if err != nil {
		return Drift{}, err
	}
	summary, err := s.store.summary(ctx, m)
	return summary.Drift, err
}

// Own returns the state of the test of a monitor, without that of other nodes.
func (s *Set) Own(m *Monitor) Drift { return m.summary().Drift }

// Delete removes what is kept about a model that is deleted.
func (s *Set) Delete(ctx context.Context, name, key string) error {
	s.mu.Lock()
	if m := s.monitors[name]; m != nil && m.key == key {
		delete(s.monitors, name)
	}
	s.mu.Unlock()
	return s.store.remove(ctx, key)
}
