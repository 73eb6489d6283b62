package cluster

import (
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
)

func nodeNames(n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("%016x", i*7919))
	}
	return names
}

func TestOwners_AreBalanced(t *testing.T) {
	const keys = 20_000
	for _, n := range []int{2, 3, 7, 16} {
		counts := map[string]int{}
		for i := range keys {
			for _, owner := range Owners(fmt.Sprint("model-", i), nodeNames(n), 2) {
				counts[owner]++
			}
		}
		want := 2 * float64(keys) / float64(n)
		for _, node := range nodeNames(n) {
			// Six standard deviations of a binomial distribution.
			if off := math.Abs(float64(counts[node]) - want); off > 6*math.Sqrt(want) {
				t.Errorf("%d nodes: %s owns %d keys, want about %.0f", n, node, counts[node], want)
			}
		}
	}
}

// Only the keys of the node that left get another owner, and the one they get is the one that
// was next.
func TestOwners_MoveOnlyTheKeysOfANodeThatLeaves(t *testing.T) {
	nodes := nodeNames(8)
	left := nodes[3]
	rest := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == left })
	moved := 0
	const keys = 5000
	for i := range keys {
		key := fmt.Sprint("model-", i)
		before, after := Owners(key, nodes, 3), Owners(key, rest, 2)
		want := slices.DeleteFunc(before, func(n string) bool { return n == left })[:2]
		if !slices.Equal(after, want) {
			t.Fatalf("%s: %v, want %v", key, after, want)
		}
		if Owners(key, nodes, 1)[0] == left {
			moved++
		}
	}
	if moved < keys/16 || moved > keys/4 {
		t.Errorf("%d of %d keys moved, want about an eighth", moved, keys)
	}
}

func TestOwners_DoNotDependOnTheOrderOfNodes(t *testing.T) {
	nodes := nodeNames(9)
	want := Owners("m", nodes, 9)
	if sorted := slices.Sorted(slices.Values(want)); !slices.Equal(sorted, nodes) {
		t.Errorf("%v", want)
	}
	for range 20 {
		rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		if got := Owners("m", nodes, 4); !slices.Equal(got, want[:4]) {
			t.Errorf("%v, want %v", got, want[:4])
		}
	}
	for _, n := range []int{-1, 0} {
		if got := Owners("m", nodes, n); len(got) != 0 {
			t.Errorf("%d owners: %v", n, got)
		}
	}
	if got := Owners("m", nil, 2); len(got) != 0 {
		t.Errorf("no nodes: %v", got)
	}
}

func TestMembers_ForgetANodeThatLeavesOrDies(t *testing.T) {
	s := brokertest.InProcess(t)
	const ttl, beat = time.Second, 100 * time.Millisecond
	start := func(role string) *Members {
		m, err := join(t.Context(), brokertest.Open(t, s.URL(), nil), func() Node { return Node{Role: role, Models: 3} }, slog.New(slog.DiscardHandler), ttl, beat)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		return m
	}
	a, b, c := start(RoleServe), start(RoleServe), start(RoleWorker)
	alive := func() (ids []string) {
		for _, n := range a.Alive() {
			ids = append(ids, n.ID)
		}
		return ids
	}
	wait := func(what string, want ...*Members) time.Duration {
		t.Helper()
		var ids []string
		for _, m := range want {
			ids = append(ids, m.Self())
		}
		slices.Sort(ids)
		for began := time.Now(); time.Since(began) < 60*time.Second; time.Sleep(5 * time.Millisecond) {
			if slices.Equal(alive(), ids) {
				return time.Since(began)
			}
		}
		t.Fatalf("%s: %v, want %v", what, alive(), ids)
		return 0
	}
	wait("all", a, b, c)
	owners := a.Owners("m", RoleServe, 5)
	if len(owners) != 2 || slices.Contains(owners, c.Self()) || !slices.Equal(owners, b.Owners("m", RoleServe, 5)) && b.Ready() {
		t.Errorf("owners %v", owners)
	}
	if n := a.Alive()[0]; n.Models != 3 || n.Role == "" {
		t.Errorf("%+v", n)
	}
	c.Close()
	if took := wait("one has left", a, b); took > ttl {
		t.Errorf("a node that left was forgotten after %s", took)
	}
	b.stop() // dies: it gives no more signs of life
	b.tasks.Wait()
	took := wait("one is dead", a)
	t.Logf("a dead node was forgotten after %s, with a TTL of %s", took, ttl)
	if took < ttl/2 {
		t.Errorf("a dead node was forgotten after %s already", took)
	}
	// Without the servers a node knows of itself only.
	d := start(RoleServe)
	wait("a new one", a, d)
	s.Stop()
	wait("cut off", a)
	s.Start()
	wait("together again", a, d)
}
