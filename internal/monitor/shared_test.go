package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/drift"
	"github.com/deepmed/anomaly/internal/registry"
)

// graveyard has the nodes that are gone.
type graveyard struct {
	mu   sync.Mutex
	gone map[string]bool
}

func (g *graveyard) bury(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone == nil {
		g.gone = map[string]bool{}
	}
	g.gone[id] = true
}

type nodes struct {
	*graveyard
	self string
}

func (n nodes) Self() string { return n.self }

func (n nodes) Gone(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone[id]
}

// node is a process of a cluster with the model m.
type node struct {
	*Set
	store *sharedStore
	b     *broker.Broker
}

// join starts a node. Its monitors are written only by Save and Close.
func join(t *testing.T, url string, r registry.Registry, g *graveyard) *node {
	t.Helper()
	b := brokertest.Open(t, url, nil)
	models := func(context.Context) (map[string]bool, error) { return map[string]bool{"m": true}, nil }
	s, err := NewShared(t.Context(), b, nodes{g, b.Node()}, models, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	set := NewSet(r, s, slog.New(slog.DiscardHandler))
	t.Cleanup(set.Close)
	return &node{set, s.(*sharedStore), b}
}

// die ends a node without leaving.
func (n *node) die(g *graveyard) {
	n.stopped.Do(func() {
		n.stop()
		n.saver.Wait()
		n.store.close()
	})
	g.bury(n.b.Node())
}

func (n *node) observe(t *testing.T, r *oneModel, scores ...float64) (alarm bool) {
	t.Helper()
	m := n.Of("m", r.entry.SHA256)
	if m == nil {
		t.Fatal("no monitor")
	}
	for _, s := range scores {
		alarm = m.Observe(r.entry.SHA256, s)
	}
	return alarm
}

func (n *node) summaryOf(t *testing.T, r *oneModel) Summary {
	t.Helper()
	s, err := n.Summary(t.Context(), n.Of("m", r.entry.SHA256))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *node) slotNumbers(t *testing.T) []int {
	t.Helper()
	list, err := n.store.numbers(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("condition not reached: %s", what)
}

func TestShared_CombinesTheVerdictsOfAllNodes(t *testing.T) {
	url, r, g := brokertest.InProcess(t).URL(), newModel(), &graveyard{}
	a, b := join(t, url, r, g), join(t, url, r, g)
	a.observe(t, r, 1, 2)
	time.Sleep(3 * time.Millisecond) // the order of verdicts is that of their times
	b.observe(t, r, 3)
	time.Sleep(3 * time.Millisecond)
	a.observe(t, r, 4)
	a.Save()
	b.Save()
	for _, n := range []*node{a, b} {
		s := n.summaryOf(t, r)
		if s.Count != 4 || !slices.Equal(s.Recent, []float64{1, 2, 3, 4}) || s.Drift.Images != 4 || s.Drift.Alarm || !s.Drift.Available {
			t.Errorf("%+v", s)
		}
	}
	var many []float64
	for i := range recentScores {
		many = append(many, float64(i%100))
	}
	time.Sleep(3 * time.Millisecond)
	b.observe(t, r, many...)
	b.Save()
	if s := a.summaryOf(t, r); s.Count != 4+recentScores || !slices.Equal(s.Recent, many) {
		t.Errorf("%d verdicts, %d recent, %+v", s.Count, len(s.Recent), s.Drift)
	}
}

// The alarm of a node is that of all nodes, and so is its reset.
func TestShared_TellsAllNodesOfAnAlarmAndAReset(t *testing.T) {
	url, r, g := brokertest.InProcess(t).URL(), newModel(), &graveyard{}
	a, b := join(t, url, r, g), join(t, url, r, g)
	b.observe(t, r, 5)
	a.observe(t, r, slices.Repeat([]float64{1000}, 100)...)
	a.Save()
	if !a.observe(t, r, 5) {
		t.Fatal("no alarm on the node itself")
	}
	eventually(t, "the alarm is on the other node", func() bool { return b.observe(t, r, 5) })
	c := join(t, url, r, g)
	eventually(t, "the alarm is on a new node", func() bool { return c.observe(t, r, 5) })
	for _, n := range []*node{a, b, c} {
		if d := n.summaryOf(t, r).Drift; !d.Alarm || d.Since.IsZero() || d.Log10Evidence < 2 {
			t.Errorf("%+v", d)
		}
	}
	d, err := b.Reset(t.Context(), b.Of("m", r.entry.SHA256))
	if err != nil || d.Alarm || d.Images != 0 || d.Log10Evidence > 0 {
		t.Errorf("%+v, %v", d, err)
	}
	for _, n := range []*node{a, b, c} {
		eventually(t, "the alarm is off", func() bool { return !n.observe(t, r, 5) })
		n.Save()
	}
	for _, n := range []*node{a, b, c} {
		if s := n.summaryOf(t, r); s.Drift.Alarm || s.Drift.Log10Evidence > 0 || s.Count < 100 {
			t.Errorf("%+v, %d verdicts", s.Drift, s.Count)
		}
	}
}

// A node that ends leaves its verdicts and its test to the next one, so that the number of
// slots is that of the nodes that were alive at once.
func TestShared_GoesOnWithTheTestOfANodeThatEnded(t *testing.T) {
	url, r, g := brokertest.InProcess(t).URL(), newModel(), &graveyard{}
	alone := drift.New(newMonitor("m", "m", r.version, r.entry.Metadata).reference, newMonitor("m", "m", r.version, r.entry.Metadata).seed)
	const each = 30
	for i := range 4 {
		n := join(t, url, r, g)
		for j := range each {
			score := float64((i*each + j) * 7 % 131)
			n.observe(t, r, score)
			alone.Observe(score)
		}
		n.Save()
		if i%2 == 0 {
			n.Close()
		} else {
			n.die(g)
		}
		if got := n.slotNumbers(t); !slices.Equal(got, []int{0}) {
			t.Fatalf("slots %v", got)
		}
	}
	n := join(t, url, r, g)
	s := n.summaryOf(t, r)
	want := alone.Log10Evidence() + math.Log10(slot{shared: true}.share())
	if s.Count != 4*each || len(s.Recent) != 4*each || s.Drift.Images != 4*each || math.Abs(s.Drift.Log10Evidence-want) > 1e-9 {
		t.Errorf("%d verdicts, %+v, want evidence %v", s.Count, s.Drift, want)
	}
}

// A node that was stopped for long finds its slot in the hands of another. No verdict is counted
// twice, and none that was written is lost.
func TestShared_GivesUpASlotThatAnotherHasTaken(t *testing.T) {
	url, r, g := brokertest.InProcess(t).URL(), newModel(), &graveyard{}
	a := join(t, url, r, g)
	a.observe(t, r, 1, 2)
	a.Save()
	g.bury(a.b.Node()) // although it is alive
	b := join(t, url, r, g)
	b.observe(t, r, 3)
	b.Save()
	a.observe(t, r, 4, 5)
	a.Save()
	if got := a.slotNumbers(t); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("slots %v", got)
	}
	for _, n := range []*node{a, b} {
		s := n.summaryOf(t, r)
		slices.Sort(s.Recent)
		if s.Count != 5 || !slices.Equal(s.Recent, []float64{1, 2, 3, 4, 5}) || s.Drift.Images != 5 {
			t.Errorf("%+v", s)
		}
	}
}

func TestShared_KeepsVerdictsWhileTheServersAreAway(t *testing.T) {
	s, r, g := brokertest.InProcess(t), newModel(), &graveyard{}
	a := join(t, s.URL(), r, g)
	a.observe(t, r, 1)
	a.Save()
	s.Stop()
	a.observe(t, r, 2)
	m := a.Of("m", r.entry.SHA256)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := a.store.save(ctx, m); err == nil {
		t.Error("verdicts were written to no server")
	}
	s.Start()
	a.observe(t, r, 3)
	eventually(t, "all are written", func() bool {
		a.Save()
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.slot.saved == 3
	})
	if got := a.slotNumbers(t); !slices.Equal(got, []int{0}) {
		t.Errorf("slots %v", got)
	}
	b := join(t, s.URL(), r, g)
	if s := b.summaryOf(t, r); s.Count != 3 || !slices.Equal(s.Recent, []float64{1, 2, 3}) {
		t.Errorf("%+v", s)
	}
}

func TestShared_BeginsAnewAfterACalibration(t *testing.T) {
	url, r, g := brokertest.InProcess(t).URL(), newModel(), &graveyard{}
	a := join(t, url, r, g)
	a.observe(t, r, slices.Repeat([]float64{1000}, 100)...)
	a.Save()
	r.mu.Lock()
	r.version.Since = r.version.Since.Add(time.Hour)
	r.version.SHA256 = fmt.Sprintf("%064d", 1)
	r.entry.SHA256 = r.version.SHA256
	r.mu.Unlock()
	a.observe(t, r, 5)
	a.Save()
	for _, n := range []*node{a, join(t, url, r, g)} {
		if s := n.summaryOf(t, r); s.Count != 1 || s.Drift.Alarm || s.Drift.Images != 1 {
			t.Errorf("%+v", s)
		}
	}
	if got := a.slotNumbers(t); !slices.Equal(got, []int{0}) {
		t.Errorf("slots %v", got)
	}
	if err := a.Delete(t.Context(), "m", "m"); err != nil {
		t.Fatal(err)
	}
	if list, err := a.store.slots(t.Context(), "m"); err != nil || len(list) > 0 {
		t.Errorf("of a deleted model: %v, %v", list, err)
	}
}

// However many nodes there are, the shares of the level are at most the level.
func TestSlot_SharesSumUpToOne(t *testing.T) {
	sum := 0.0
	for n := range 100_000 {
		s := slot{shared: true, number: n}.share()
		if s <= 0 {
			t.Fatalf("slot %d has the share %v", n, s)
		}
		sum += s
	}
	if sum > 1 || sum < 0.999 {
		t.Errorf("the shares sum up to %v", sum)
	}
	if s := (slot{}).share(); s != 1 {
		t.Errorf("alone: %v", s)
	}
}

func TestShared_ForgetsModelsThatAnotherNodeDeletes(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	r, g := newModel(), &graveyard{}
	a, b := join(t, url, r, g), join(t, url, r, g)
	a.observe(t, r, 1)
	b.observe(t, r, 1)
	if _, err := a.Reset(t.Context(), a.Of("m", r.entry.SHA256)); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(t.Context(), "m", "m"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the monitor is forgotten", func() bool {
		a.store.mu.Lock()
		defer a.store.mu.Unlock()
		return len(a.store.opened) == 0 && len(a.store.marks) == 0
	})
}

// deletions returns the number of markers of a bucket, and the sequence of the last.
func deletions(t *testing.T, b *broker.Broker, bucket string) (n int, last uint64) {
	t.Helper()
	s, err := b.JetStream.Stream(t.Context(), "KV_"+bucket)
	if err != nil {
		t.Fatal(err)
	}
	subjects, last, err := b.Subjects(t.Context(), s, ">")
	if err != nil {
		t.Fatal(err)
	}
	return len(subjects), last
}

func TestShared_LeavesTheMarkersOfDeletedModelsAsTheyAre(t *testing.T) {
	r, g := newModel(), &graveyard{}
	n := join(t, brokertest.InProcess(t).URL(), r, g)
	if err := n.Delete(t.Context(), "deleted", "deleted"); err != nil {
		t.Fatal(err)
	}
	markers, last := deletions(t, n.b, driftBucket)
	for range 2 {
		if err := n.store.tidyOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if again, next := deletions(t, n.b, driftBucket); markers != 1 || again != 1 || next != last {
		t.Errorf("%d markers, the last %d; then %d, the last %d", markers, last, again, next)
	}
}
