package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// readMark returns the mark of a model, which is the zero mark if there is none, and its
// revision.
func (s *sharedStore) readMark(ctx context.Context, key string) (k mark, revision uint64, err error) {
	e, err := s.b.Get(ctx, s.drift, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return mark{}, 0, nil
	}
	if err != nil {
		return mark{}, 0, err
	}
	if json.Unmarshal(e.Value(), &k) != nil {
		k = mark{} // the next one replaces it
	}
	return k, e.Revision(), nil
}

// changeMark replaces the mark of a model by what f returns, and applies the result to the
// monitor.
func (s *sharedStore) changeMark(ctx context.Context, m *Monitor, f func(mark) (k mark, changed bool)) error {
	for range maxTries {
		old, revision, err := s.readMark(ctx, m.key)
		if err != nil {
			return err
		}
		k, changed := f(old)
		if changed {
			k.By = nuid.Next()
			value, err := json.Marshal(k)
			if err != nil {
				return err
			}
			_, err = s.b.Update(ctx, s.drift, m.key, value, revision)
			if errors.Is(err, jetstream.ErrKeyExists) {
				continue
			}
			if err != nil {
				return err
			}
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.apply(k)
		return nil
	}
	return errors.New("monitor: the mark is changed by others all the time")
}

// raise tells the other nodes about the alarm of a monitor's own test.
func (s *sharedStore) raise(ctx context.Context, m *Monitor) error {
	m.mu.Lock()
	at, epoch := m.alarmSince, m.slot.epoch
	alarm := m.test != nil && m.test.Alarm() && !m.slot.raised
	m.mu.Unlock()
	if !alarm {
		return nil
	}
	err := s.changeMark(ctx, m, func(old mark) (mark, bool) {
		switch {
		case !old.Since.Equal(m.since):
			return mark{Since: m.since, Epoch: epoch, AlarmSince: &at}, true
		case old.Epoch != epoch || old.AlarmSince != nil:
			return old, false
		}
		old.AlarmSince = &at
		return old, true
	})
	if err == nil {
		m.mu.Lock()
		m.slot.raised = m.slot.epoch == epoch
		m.mu.Unlock()
	}
	return err
}

// reset implements Store. All nodes begin their tests anew when they read the mark. What they
// write before does not count.
func (s *sharedStore) reset(ctx context.Context, m *Monitor) error {
	m.mu.Lock()
	epoch := m.slot.epoch
	m.mu.Unlock()
	return s.changeMark(ctx, m, func(old mark) (mark, bool) {
		if old.Since.Equal(m.since) {
			epoch = max(epoch, old.Epoch)
		}
		return mark{Since: m.since, Epoch: epoch + 1}, true
	})
}

// summary implements Store: the verdicts of this node as they are now, and those of the others as
// they were written last.
func (s *sharedStore) summary(ctx context.Context, m *Monitor) (Summary, error) {
	k, _, err := s.readMark(ctx, m.key)
	if err != nil {
		return Summary{}, err
	}
	list, err := s.slots(ctx, m.key)
	if err != nil {
		return Summary{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.apply(k)
	sum := Summary{Count: m.count, Drift: m.drift()}
	recent := [][]observed{m.last()}
	tested := m.test != nil
	for _, f := range list {
		if f.state == nil || !f.state.Since.Equal(m.since) || m.slot.taken && f.number == m.slot.number {
			continue
		}
		sum.Count += f.state.Count
		recent = append(recent, f.state.recent())
		if !m.testable || f.state.Drift == nil || f.state.Epoch != m.slot.epoch {
			continue
		}
		other := slot{shared: true, number: f.number}
		if test, err := other.resume(m, *f.state.Drift); err == nil {
			sum.Drift.combine(test, !tested)
			tested = true
		}
	}
	sum.Recent = scoresOf(mergeRecent(recent...))
	return sum, nil
}

// remove implements Store.
func (s *sharedStore) remove(ctx context.Context, key string) error {
	s.mu.Lock()
	delete(s.opened, key)
	s.mu.Unlock()
	numbers, err := s.numbers(ctx, key)
	for _, n := range numbers {
		err = errors.Join(err, s.b.Delete(ctx, s.verdicts, slotKey(key, n), 0))
	}
	return errors.Join(err, s.b.Delete(ctx, s.drift, key, 0))
}

// tidy removes what belongs to no model, from time to time, until ctx ends.
func (s *sharedStore) tidy(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(tidyInterval):
		}
		if err := s.tidyOnce(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot look for the verdicts of deleted models", slog.Any("error", err))
		}
	}
}

func (s *sharedStore) tidyOnce(ctx context.Context) error {
	for bucket, kv := range map[string]jetstream.KeyValue{verdictBucket: s.verdicts, driftBucket: s.drift} {
		subjects, err := s.subjects(ctx, bucket, ">")
		if err != nil {
			return err
		}
		// Read after the keys: no model of them is newer.
		live, err := s.models(ctx)
		if err != nil {
			return err
		}
		for subject := range subjects {
			key := strings.TrimPrefix(subject, "$KV."+bucket+".")
			model, _, _ := strings.Cut(key, ".")
			if live[model] {
				continue
			}
			if err := s.b.DeleteStored(ctx, kv, key); err != nil {
				return err
			}
		}
		if err := s.b.PurgeMarkers(ctx, kv, markerAge); err != nil {
			return err
		}
	}
	return nil
}
