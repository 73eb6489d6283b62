package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

const (
	// verdictBucket is the name of the bucket with the slots of each model, driftBucket that of
	// the marks.
	verdictBucket = "verdicts"
	driftBucket   = "drift"
	// maxTries bounds how often a change is tried again that others overtook.
	maxTries = 20
	// maxSlots bounds the slots of a model.
	maxSlots = 1000
	// tidyInterval is the time between two searches for what belongs to no model.
	tidyInterval = 10 * time.Minute
	markerAge    = 24 * time.Hour
)

var errNoSlot = errors.New("monitor: no place for the verdicts of this node")

// Nodes is what the store of a cluster needs to know about its nodes.
type Nodes interface {
	// Self returns the ID of this node.
	Self() string
	// Gone reports whether a node is known to have ended.
	Gone(id string) bool
}

// sharedStore keeps monitors in a NATS cluster.
type sharedStore struct {
	b        *broker.Broker
	verdicts jetstream.KeyValue
	drift    jetstream.KeyValue
	nodes    Nodes
	models   func(context.Context) (map[string]bool, error)
	log      *slog.Logger
	stop     context.CancelFunc
	tasks    sync.WaitGroup

	mu     sync.Mutex
	marks  map[string]mark     // by the model's key
	opened map[string]*Monitor // by the model's key
}

// NewShared returns a store in a cluster. models returns the keys of all models, for the removal
// of what is left of others.
func NewShared(ctx context.Context, b *broker.Broker, nodes Nodes, models func(context.Context) (map[string]bool, error), log *slog.Logger) (Store, error) {
	verdicts, err := b.KeyValue(ctx, jetstream.KeyValueConfig{Bucket: verdictBucket})
	if err != nil {
		return nil, fmt.Errorf("monitor: %w", err)
	}
	marks, err := b.KeyValue(ctx, jetstream.KeyValueConfig{Bucket: driftBucket})
	if err != nil {
		return nil, fmt.Errorf("monitor: %w", err)
	}
	s := &sharedStore{b: b, verdicts: verdicts, drift: marks, nodes: nodes, models: models, log: log, marks: map[string]mark{}, opened: map[string]*Monitor{}}
	running, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.tasks.Go(func() { b.Watch(running, driftBucket, s.marked, nil) })
	s.tasks.Go(func() { b.Lead(running, "tidy-verdicts", s.tidy) })
	return s, nil
}

func (s *sharedStore) close() {
	s.stop()
	s.tasks.Wait()
}

// marked takes over a change of a mark.
func (s *sharedStore) marked(c broker.Change) {
	var k mark
	s.mu.Lock()
	m := s.opened[c.Key]
	if c.Removed { // with the model, by any node
		delete(s.opened, c.Key)
	}
	if c.Removed || json.Unmarshal(c.Value, &k) != nil {
		delete(s.marks, c.Key)
		s.mu.Unlock()
		return
	}
	s.marks[c.Key] = k
	s.mu.Unlock()
	if m != nil {
		m.mu.Lock()
		m.apply(k)
		m.mu.Unlock()
	}
}

// open implements Store. The slot is taken when there is something to write.
func (s *sharedStore) open(m *Monitor) {
	s.mu.Lock()
	k := s.marks[m.key]
	s.opened[m.key] = m
	s.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slot = slot{shared: true}
	m.apply(k)
}

func slotKey(model string, number int) string { return model + "." + strconv.Itoa(number) }

// found is a slot that was read from the cluster.
type found struct {
	number   int
	revision uint64
	state    *slotState // nil if it is damaged
}

// slots returns the slots of a model, by their numbers.
func (s *sharedStore) slots(ctx context.Context, model string) ([]found, error) {
	numbers, err := s.numbers(ctx, model)
	if err != nil {
		return nil, err
	}
	var list []found
	for _, n := range numbers {
		e, err := s.b.Get(ctx, s.verdicts, slotKey(model, n))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f := found{number: n, revision: e.Revision()}
		var state slotState
		if json.Unmarshal(e.Value(), &state) == nil && state.valid() {
			f.state = &state
		}
		list = append(list, f)
	}
	return list, nil
}

// numbers returns the numbers of the slots of a model, ascending, also of removed ones.
func (s *sharedStore) numbers(ctx context.Context, model string) (list []int, err error) {
	subjects, err := s.subjects(ctx, verdictBucket, model+".*")
	for subject := range subjects {
		text := subject[strings.LastIndexByte(subject, '.')+1:]
		if n, err := strconv.Atoi(text); err == nil && n >= 0 && n < maxSlots {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, err
}

func (s *sharedStore) subjects(ctx context.Context, bucket, filter string) (map[string]uint64, error) {
	var stream jetstream.Stream
	err := s.b.Retry(ctx, func(ctx context.Context) (err error) {
		stream, err = s.b.JetStream.Stream(ctx, "KV_"+bucket)
		return err
	})
	if err != nil {
		return nil, err
	}
	subjects, _, err := s.b.Subjects(ctx, stream, "$KV."+bucket+"."+filter)
	return subjects, err
}

// claim takes a slot for a monitor: that of a node that has ended, or a new one. It writes the
// slot.
func (s *sharedStore) claim(ctx context.Context, m *Monitor) error {
	list, err := s.slots(ctx, m.key)
	if err != nil {
		return err
	}
	next := 0
	for _, f := range list {
		next = f.number + 1
		if f.state != nil && f.state.Owner != "" && f.state.Owner != s.nodes.Self() && !s.nodes.Gone(f.state.Owner) {
			continue
		}
		if f.state != nil && !f.state.Since.Equal(m.since) {
			f.state = nil // of another calibration
		}
		if ok, err := s.occupy(ctx, m, f); ok || err != nil {
			return err
		}
	}
	for ; next < maxSlots; next++ {
		if ok, err := s.occupy(ctx, m, found{number: next}); ok || err != nil {
			return err
		}
	}
	return errNoSlot
}

// occupy takes a slot unless another node was faster.
func (s *sharedStore) occupy(ctx context.Context, m *Monitor, f found) (bool, error) {
	state := slotState{State: State{Since: m.since, Recent: []float64{}}, At: []int64{}}
	if f.state != nil {
		state = *f.state
	}
	state.Owner, state.By = s.nodes.Self(), nuid.Next()
	value, err := json.Marshal(state)
	if err != nil {
		return false, err
	}
	revision, err := s.b.Update(ctx, s.verdicts, slotKey(m.key, f.number), value, f.revision)
	if errors.Is(err, jetstream.ErrKeyExists) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.take(f.number, revision, f.state)
	m.slot.saved = state.Count
	return true, nil
}

// save implements Store.
func (s *sharedStore) save(ctx context.Context, m *Monitor) error {
	for range maxTries {
		m.mu.Lock()
		if !m.changed {
			m.mu.Unlock()
			return nil
		}
		if !m.slot.taken {
			m.mu.Unlock()
			if err := s.claim(ctx, m); err != nil {
				return err
			}
			continue
		}
		done, err := s.write(ctx, m, s.nodes.Self()) // releases the lock
		if err != nil {
			return err
		}
		if done {
			err := s.raise(ctx, m)
			if err != nil {
				m.mu.Lock()
				m.changed = true // so that it is tried again
				m.mu.Unlock()
			}
			return err
		}
	}
	return errNoSlot
}

// write writes the slot of a monitor. The caller has the lock mu, which write releases. It
// reports false if it must be tried again: the slot was written by an earlier write of this node
// whose answer was lost, or another node has taken over the slot.
func (s *sharedStore) write(ctx context.Context, m *Monitor, owner string) (done bool, err error) {
	m.changed = false
	state, slot := m.slotState(owner, nuid.Next()), m.slot
	m.mu.Unlock()
	value, err := json.Marshal(state)
	var revision uint64
	if err == nil {
		revision, err = s.b.Update(ctx, s.verdicts, slotKey(m.key, slot.number), value, slot.revision)
	}
	if errors.Is(err, jetstream.ErrKeyExists) {
		return false, s.lookAgain(ctx, m)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.changed = true
		return false, err
	}
	m.slot.revision, m.slot.saved = revision, state.Count
	return true, nil
}

// lookAgain looks at the slot of a monitor, whose revision is not the expected one.
func (s *sharedStore) lookAgain(ctx context.Context, m *Monitor) error {
	m.mu.Lock()
	m.changed = true
	number := m.slot.number
	m.mu.Unlock()
	e, err := s.b.Get(ctx, s.verdicts, slotKey(m.key, number))
	if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return err
	}
	var state slotState
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil:
		m.slot.revision = 0 // to create it
	case json.Unmarshal(e.Value(), &state) == nil && state.Owner == s.nodes.Self():
		m.slot.revision = e.Revision()
	default:
		m.lose()
	}
	return nil
}

// leave implements Store.
func (s *sharedStore) leave(ctx context.Context, m *Monitor) error {
	s.mu.Lock()
	if s.opened[m.key] == m {
		delete(s.opened, m.key)
	}
	s.mu.Unlock()
	m.mu.Lock()
	if !m.slot.taken {
		m.mu.Unlock()
		return nil
	}
	_, err := s.write(ctx, m, "")
	return err
}
