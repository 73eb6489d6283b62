package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/cluster"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
)

// startNode runs one more node of a cluster.
func startNode(t testing.TB, url string, change func(*Options)) *service {
	t.Helper()
	b := brokertest.Open(t, url, nil)
	s := start(t, func(o *Options) {
		o.Broker = b
		if change != nil {
			change(o)
		}
	})
	s.node.models.Load(t.Context(), nil)
	return s
}

// startNodes runs the nodes of a cluster, which know each other when it returns.
func startNodes(t *testing.T, n int) []*service {
	t.Helper()
	url := brokertest.InProcess(t).URL()
	var list []*service
	for range n {
		// Each has one model in memory.
		list = append(list, startNode(t, url, func(o *Options) { o.CacheBytes = 1 }))
	}
	for _, s := range list {
		eventually(t, "the nodes know each other", func() bool { return len(s.node.members.Alive()) == n })
	}
	return list
}

// unload loads another model, for which the only one in memory is given up.
func (s *service) unload(t testing.TB) {
	t.Helper()
	_, release, err := s.cache.Get(t.Context(), "another", func() (*inference.Detector, error) {
		return s.loadDetector(trained(t)[models.CheckpointFile])
	})
	if err != nil {
		t.Fatal(err)
	}
	release()
}

// split returns the nodes that own the model m, the first owner first, and the others.
func split(nodes []*service) (owners, others []*service) {
	ids := nodes[0].node.members.Owners("m", cluster.RoleServe, ownersOfModel)
	for _, id := range ids {
		owners = append(owners, nodes[slices.IndexFunc(nodes, func(s *service) bool { return s.node.members.Self() == id })])
	}
	for _, s := range nodes {
		if !slices.Contains(owners, s) {
			others = append(others, s)
		}
	}
	return owners, others
}

func TestCluster_ServesAModelOnEveryNode(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	image := tile(t, testCrack)
	a.mustPut(t, "m", trained(t)[exporter.BundleFile])
	stored := time.Now()
	first := b.verdict(t, image)
	t.Logf("the other node judged %s after the model was stored", time.Since(stored))
	own := a.verdict(t, image)
	if math.Float64bits(first.AnomalyScore) != math.Float64bits(own.AnomalyScore) || first.ModelSHA256 != own.ModelSHA256 {
		t.Errorf("%+v and %+v", first, own)
	}
	if got := b.byName(t, "m", image).header.Get(headerModelSHA256); got != own.ModelSHA256 {
		t.Errorf("%s: %s", headerModelSHA256, got)
	}

	// A new version.
	patch := func(s *service, body string) answer {
		return s.send(t, http.MethodPatch, "/models/m", "application/json", bytes.NewReader([]byte(body)))
	}
	moved := patch(b, `{"threshold": 123}`)
	if moved.status != 200 {
		t.Fatalf("status %d: %s", moved.status, moved.body)
	}
	changed := time.Now()
	eventually(t, "the new version judges on the other node", func() bool { return a.verdict(t, image).Threshold == 123 })
	t.Logf("the new version judged on the other node after %s", time.Since(changed))
	if list := a.versions(t); len(list) != 2 || list[1].SHA256 != own.ModelSHA256 {
		t.Errorf("%+v", list)
	}

	// Two nodes change the threshold of the same version: one of them is told so.
	var group sync.WaitGroup
	status := make([]int, 2)
	for i, s := range nodes {
		group.Go(func() { status[i] = patch(s, []string{`{"threshold": 5}`, `{"threshold": 6}`}[i]).status })
	}
	group.Wait()
	slices.Sort(status)
	if !slices.Equal(status, []int{200, 409}) && !slices.Equal(status, []int{200, 200}) {
		t.Errorf("status %v", status)
	}
	want := 4
	if status[1] == 409 {
		want = 3
	}
	for _, s := range nodes {
		eventually(t, "all versions are listed", func() bool { return len(s.versions(t)) == want })
	}

	// Feedback of one node is seen on the other, also after the model is deleted.
	if r := a.sendFeedback(t, "normal", "a.jpg", image); r.status != 201 {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	if got := b.feedback(t, ""); len(got.Feedback) != 1 || got.Feedback[0].Filename != "a.jpg" {
		t.Errorf("%+v", got)
	}
	if r := b.request(t, http.MethodDelete, "/models/m", nil); r.status != 204 {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	eventually(t, "the model is gone", func() bool { return a.request(t, http.MethodGet, "/models/m", nil).status == 404 })
	a.mustPut(t, "m", trained(t)[exporter.BundleFile])
	for _, s := range nodes {
		if got := s.feedback(t, ""); len(got.Feedback) != 0 {
			t.Errorf("feedback of the deleted model: %+v", got)
		}
		if got := s.scores(t); got.Recent.Count != 0 {
			t.Errorf("verdicts of the deleted model: %+v", got.Recent)
		}
	}
}

// A version that a detection uses remains usable when it is replaced, pruned and deleted.
func TestCluster_KeepsAVersionThatIsInUse(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	one := func(o *Options) { o.ModelVersions, o.CacheBytes = 1, 1 }
	a, b := startNode(t, url, one), startNode(t, url, one)
	a.mustPut(t, "m", trained(t)[exporter.BundleFile])
	image := tile(t, testCrack)
	want := b.verdict(t, image)
	d, release, err := b.namedDetector(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if r := a.put(t, "m", trained(t)[models.CheckpointFile]); r.status != 200 {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	if r := a.request(t, http.MethodDelete, "/models/m", nil); r.status != 204 {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	eventually(t, "the model is gone", func() bool { return b.request(t, http.MethodGet, "/models/m", nil).status == 404 })
	got, err := b.scheduler.Detect(t.Context(), d, inference.Task{Image: image, Limits: b.options.Images})
	if err != nil || got.AnomalyScore != want.AnomalyScore || got.ModelSHA256 != want.ModelSHA256 {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

func TestCluster_CombinesTheVerdictsOfItsNodes(t *testing.T) {
	nodes := startNodes(t, 2) // both own every model
	nodes[0].mustPut(t, "m", trained(t)[exporter.BundleFile])
	var want []float64
	for i, path := range tileFiles(t, testGood, 6) {
		want = append(want, nodes[i%2].verdict(t, read(t, path)).AnomalyScore)
		time.Sleep(2 * time.Millisecond)
	}
	for _, s := range nodes {
		s.named.monitors.Save()
	}
	for _, s := range nodes {
		got := s.scores(t)
		if got.Recent.Count != 6 || !slices.Equal(got.Recent.Scores, want) || got.Drift.Images != 6 || !got.Drift.Available {
			t.Errorf("%+v, want %v", got, want)
		}
	}
}

func TestForward_JudgesAsTheNodeItself(t *testing.T) {
	nodes := startNodes(t, 3)
	owners, others := split(nodes)
	asker := others[0]
	asker.node.patience = time.Minute // on a busy machine, too
	owners[0].mustPut(t, "m", trained(t)[exporter.BundleFile])
	eventually(t, "the model is known", func() bool { _, err := asker.registry.Look(t.Context(), "m"); return err == nil })
	good, crack := tile(t, testGood), tile(t, testCrack)
	broken := []byte("no image")
	answers := func() (list []answer) {
		for _, path := range []string{"/models/m/detect", "/models/m/detect/heatmap"} {
			for _, images := range [][][]byte{{good}, {crack}, {broken}, {good, broken, crack}} {
				for _, explain := range []string{"", "true", "overlay"} {
					var parts []part
					for _, image := range images {
						parts = append(parts, file("imageFile", "i.jpg", image))
					}
					list = append(list, asker.post(t, path, append(parts, text("explain", explain))...))
				}
			}
		}
		return list
	}
	remote := answers()
	if asker.cache.Stats().Models != 0 {
		t.Error("the asker has loaded the model")
	}
	for _, s := range others[1:] {
		if s.cache.Stats().Models != 0 {
			t.Error("a node that is no owner has loaded the model")
		}
	}
	e, err := asker.registry.Get(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	_, release, err := asker.detectorOf(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	release()
	for i, local := range answers() {
		r := remote[i]
		if r.status != local.status || !bytes.Equal(r.body, local.body) || r.header.Get(headerModelSHA256) != local.header.Get(headerModelSHA256) {
			t.Errorf("answer %d: status %d: %.300s\nlocal: status %d: %.300s", i, r.status, r.body, local.status, local.body)
		}
	}
	if s := asker.scores(t); s.Recent.Count == 0 {
		t.Error("no verdict was counted")
	}
}

func TestForward_FallsBackToItself(t *testing.T) {
	nodes := startNodes(t, 3)
	owners, others := split(nodes)
	asker := others[0]
	asker.mustPut(t, "m", trained(t)[exporter.BundleFile])
	image := tile(t, testGood)
	want := asker.verdict(t, image)
	for _, s := range owners {
		eventually(t, "the model is known", func() bool { _, err := s.registry.Look(t.Context(), "m"); return err == nil })
	}
	check := func(what string, limit time.Duration) {
		t.Helper()
		asker.unload(t)
		if asker.cache.Has(want.ModelSHA256) {
			t.Fatal("the model is still in memory")
		}
		began := time.Now()
		got := asker.verdict(t, image)
		if math.Float64bits(got.AnomalyScore) != math.Float64bits(want.AnomalyScore) || got.ModelSHA256 != want.ModelSHA256 {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
		if took := time.Since(began); took > limit {
			t.Errorf("%s: it took %s", what, took)
		}
		if !asker.cache.Has(want.ModelSHA256) {
			t.Errorf("%s: the asker has not judged itself", what)
		}
	}
	var freed []func()
	for _, s := range owners {
		freed = append(freed, fill(t, s.detectionSlots))
	}
	check("the owners are busy", 30*time.Second)
	for _, free := range freed {
		free()
	}
	for _, s := range owners {
		s.draining.Store(true)
	}
	check("the owners are shutting down", 30*time.Second)
	for _, s := range owners {
		s.draining.Store(false)
	}

	// They do not answer.
	for _, s := range owners {
		s.node.unanswer()
		stop, err := s.node.members.Answer(detectQuestion, func(ctx context.Context, _ cluster.Question) ([]byte, bool) {
			<-ctx.Done()
			return nil, false
		})
		if err != nil {
			t.Fatal(err)
		}
		s.node.unanswer = stop
	}
	check("the owners are slow", forwardTime+30*time.Second)
	began := time.Now()
	check("the owners were slow a moment ago", 30*time.Second)
	t.Logf("a request after one that waited in vain took %s", time.Since(began))
	for _, s := range owners {
		if _, err := asker.node.members.Ask(t.Context(), s.node.members.Self(), detectQuestion, cluster.Question{}, time.Minute); !errors.Is(err, cluster.ErrNoAnswer) {
			t.Errorf("an owner that was slow is asked again: %v", err)
		}
	}
	for _, s := range owners {
		s.node.unanswer()
		s.node.unanswer = nil
	}
	check("the owners are dead", 30*time.Second)

	// Nonsense is no verdict.
	asker.node.members = rejoin(t, asker)
	for _, s := range owners {
		stop, err := s.node.members.Answer(detectQuestion, func(context.Context, cluster.Question) ([]byte, bool) {
			return []byte(`{"verdict": {"model_sha256": "0"}}`), true
		})
		if err != nil {
			t.Fatal(err)
		}
		s.node.unanswer = stop
	}
	check("the owners answer with another version", 30*time.Second)
}

// rejoin returns the members of a cluster as a node knows them that has not failed to reach one.
func rejoin(t *testing.T, s *service) *cluster.Members {
	t.Helper()
	before := s.node.members
	n := len(before.Alive())
	m, err := cluster.Join(t.Context(), s.options.Broker, s.node.describe, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(before.Close)
	eventually(t, "the nodes are known", func() bool { return len(m.Alive()) == n })
	return m
}

// An owner that knows an earlier version reads the current one before it judges.
func TestAnswer_JudgesTheVersionThatIsAsked(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	s := startNode(t, url, nil)
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	e := s.entry(t)
	ask := func(version string, image []byte) (forwarded, bool) {
		q := cluster.Question{Header: map[string][]string{questionModel: {"m"}, questionVersion: {version}}, Data: image}
		data, ok := s.node.answer(t.Context(), q)
		var a forwarded
		if ok {
			if err := json.Unmarshal(data, &a); err != nil {
				t.Fatal(err)
			}
		}
		return a, ok
	}
	if a, ok := ask(e.SHA256, tile(t, testGood)); !ok || a.Verdict == nil || a.Verdict.ModelSHA256 != e.SHA256 {
		t.Errorf("%+v", a)
	}
	if a, ok := ask(models.Identity(nil), tile(t, testGood)); ok {
		t.Errorf("another version: %+v", a)
	}
	if a, ok := ask(e.SHA256, []byte("no image")); !ok || a.Kind != "image" || a.Error == "" {
		t.Errorf("no image: %+v", a)
	}
	other, err := registry.OpenShared(t.Context(), brokertest.Open(t, url, nil), models.DefaultLimits(),
		registry.SharedOptions{Options: s.registryOptions(), CacheDir: t.TempDir()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	file := trained(t)[models.CheckpointFile]
	m, err := models.Read(file, models.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	now, _, err := other.Put(t.Context(), "m", m, file, registry.Change{})
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := ask(now.SHA256, tile(t, testGood)); !ok || a.Verdict == nil || a.Verdict.ModelSHA256 != now.SHA256 {
		t.Errorf("a version that was just stored: %+v", a)
	}
}

func TestCluster_ListsItsNodes(t *testing.T) {
	nodes := startNodes(t, 2)
	got := as[struct {
		Node  string
		Nodes []cluster.Node
	}](t, nodes[0].request(t, http.MethodGet, "/cluster", nil))
	if got.Node != nodes[0].node.members.Self() || len(got.Nodes) != 2 || got.Nodes[0].Role != cluster.RoleServe {
		t.Errorf("%+v", got)
	}
	alone, _ := startWithModels(t, nil)
	if a := alone.request(t, http.MethodGet, "/cluster", nil); a.status != 404 || a.message(t) == "" {
		t.Errorf("alone: status %d: %s", a.status, a.body)
	}
}

// Without the servers a node serves what it knows, and says in time what it cannot do.
func TestCluster_ServesKnownModelsWhileTheServersAreAway(t *testing.T) {
	s := brokertest.InProcess(t)
	a := startNode(t, s.URL(), nil)
	a.mustPut(t, "m", trained(t)[exporter.BundleFile])
	image := tile(t, testGood)
	want := a.verdict(t, image)
	s.Stop()
	if got := a.verdict(t, image); got.AnomalyScore != want.AnomalyScore {
		t.Errorf("%+v", got)
	}
	if got := a.byName(t, "unknown", image); got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("an unknown model: status %d: %s", got.status, got.body)
	}
	if got := a.request(t, http.MethodGet, "/models", nil); got.status != 200 {
		t.Errorf("the list: status %d: %s", got.status, got.body)
	}
	s.Start()
	eventually(t, "changes are possible again", func() bool {
		return a.put(t, "n", trained(t)[models.CheckpointFile]).status == 201
	})
}

// BenchmarkForward measures an image that another node judges, and one that the node judges
// itself, over HTTP.
func BenchmarkForward(b *testing.B) {
	url := brokertest.InProcess(b).URL()
	var nodes []*service
	for range 3 {
		nodes = append(nodes, startNode(b, url, nil))
	}
	for len(nodes[0].node.members.Alive()) < len(nodes) {
		time.Sleep(10 * time.Millisecond)
	}
	owners, others := split(nodes)
	owners[0].mustPut(b, "m", trained(b)[exporter.BundleFile])
	image := tile(b, testGood)
	for name, s := range map[string]*service{"self": owners[0], "other": others[0]} {
		b.Run(name, func(b *testing.B) {
			s.verdict(b, image)
			for b.Loop() {
				s.verdict(b, image)
			}
		})
	}
}
