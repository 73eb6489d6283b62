package monitor

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
)

// oneModel is a registry with at most one model, m.
type oneModel struct {
	registry.Registry
	holding sync.RWMutex
	mu      sync.Mutex
	entry   registry.Entry
	version registry.Version
}

// newModel returns a registry whose model has calibration scores from 0 to 99.
func newModel() *oneModel {
	d := &models.Decision{CalibrationImages: 100}
	for i := range 100 {
		d.Scores = append(d.Scores, float64(i))
	}
	sha256 := models.Identity([]byte("m"))
	return &oneModel{
		entry:   registry.Entry{Key: "m", Name: "m", State: registry.Ready, SHA256: sha256, Metadata: &models.Metadata{Decision: d}},
		version: registry.Version{SHA256: sha256, Scores: sha256, Since: time.Now().UTC()},
	}
}

func (r *oneModel) Look(context.Context, string) (registry.Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.entry.Name == "" {
		return registry.Entry{}, registry.ErrUnknown
	}
	return r.entry, nil
}

func (r *oneModel) Current(context.Context, string) (registry.Version, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.version, nil
}

func (r *oneModel) Hold() func() {
	r.holding.RLock()
	return r.holding.RUnlock
}

func (r *oneModel) List() []registry.Entry { return []registry.Entry{r.entry} }

func (r *oneModel) delete() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entry.Name = ""
}

// inFolder returns a set whose monitors are kept in dir.
func inFolder(t *testing.T, r registry.Registry, dir string) *Set {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s := NewSet(r, NewFolder(func(key string) string { return filepath.Join(dir, key) }, log), log)
	t.Cleanup(s.Close)
	return s
}

// A model file may have any number of calibration images.
func TestMonitor_StaysFiniteForHostileMetadata(t *testing.T) {
	store := NewFolder(func(string) string { return t.TempDir() }, slog.New(slog.DiscardHandler))
	for _, n := range []int{math.MinInt, -1, 0, 1 << 53, math.MaxInt - 1, math.MaxInt} {
		md := models.Metadata{Decision: &models.Decision{Scores: []float64{0, 1, 1, 2}, CalibrationImages: n}}
		m := newMonitor("m", "m", registry.Version{}, &md)
		store.open(m)
		for i := range 100 {
			m.Observe("", float64(i%4))
		}
		if _, err := json.Marshal(m.summary()); err != nil {
			t.Errorf("%d images: the summary: %v", n, err)
		}
		if _, err := json.Marshal(m.state()); err != nil {
			t.Errorf("%d images: the file: %v", n, err)
		}
	}
}

func TestSet_OpensNoMonitorOfADeletedModel(t *testing.T) {
	r, dir := newModel(), t.TempDir()
	s := inFolder(t, r, dir)
	sha256 := r.entry.SHA256
	r.holding.Lock() // as while the model is deleted
	opened := make(chan *Monitor, 1)
	go func() { opened <- s.Of("m", sha256) }()
	select {
	case <-opened:
		t.Error("a monitor was opened during the deletion")
		opened <- nil
	case <-time.After(100 * time.Millisecond):
	}
	r.delete()
	r.holding.Unlock()
	if m := <-opened; m != nil {
		t.Error("a monitor was opened")
	}
}

func TestSet_WritesNoVerdictsOfADeletedModel(t *testing.T) {
	r, dir := newModel(), t.TempDir()
	s := inFolder(t, r, dir)
	m := s.Of("m", r.entry.SHA256)
	m.Observe(r.entry.SHA256, 1)
	r.delete()
	s.Save()
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
	if len(s.All()) > 0 {
		t.Error("the monitor is still there")
	}
}

func TestMonitor_KeepsTheLastScoresInOrder(t *testing.T) {
	r, dir := newModel(), t.TempDir()
	s := inFolder(t, r, dir)
	e := r.entry
	m := s.Of("m", e.SHA256)
	const n = 2*recentScores + 300
	for i := range n {
		m.Observe(e.SHA256, float64(i))
	}
	if m.Observe(models.Identity(nil), 7); m.count != n {
		t.Errorf("a verdict of another version was counted")
	}
	for range 2 {
		m = s.Of("m", e.SHA256)
		got, err := s.Summary(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		if got.Count != n || len(got.Recent) != recentScores || got.Recent[0] != n-recentScores || got.Recent[recentScores-1] != n-1 || !slices.IsSorted(got.Recent) {
			t.Errorf("%d scores of %d from %v to %v", len(got.Recent), got.Count, got.Recent[0], got.Recent[len(got.Recent)-1])
		}
		if got.Drift.Images != n || !got.Drift.Alarm || got.Drift.Since.IsZero() {
			t.Errorf("%+v", got.Drift)
		}
		s.Save()
		s = inFolder(t, r, dir) // reads it again
	}
}

func TestReset_EndsTheAlarmAndIsKept(t *testing.T) {
	r, dir := newModel(), t.TempDir()
	s := inFolder(t, r, dir)
	m := s.Of("m", r.entry.SHA256)
	alarm := false
	for range 100 {
		alarm = m.Observe(r.entry.SHA256, 1000)
	}
	if !alarm {
		t.Fatal("no alarm")
	}
	if d, err := s.Reset(t.Context(), m); err != nil || d.Alarm || d.Images != 0 || d.Log10Evidence != 0 || !d.Available {
		t.Errorf("%+v, %v", d, err)
	}
	m = inFolder(t, r, dir).Of("m", r.entry.SHA256)
	if d := m.summary(); d.Drift.Alarm || d.Count != 100 {
		t.Errorf("read again: %+v", d)
	}
}
