package main

import (
	"bytes"
	"encoding/json"

	"io"
	"mime/multipart"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/cluster"
	"github.com/deepmed/anomaly/internal/registry"
)

// judge sends an image to a stored model.
func (s *serving) judge(t *testing.T, name string, image []byte) (v inference.Verdict, status int) {
	t.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	part, err := w.CreateFormFile("imageFile", "i.jpg")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = part.Write(image) // bytes.Buffer does not fail
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := http.Post("http://"+s.address+"/models/"+name+"/detect", w.FormDataContentType(), &body)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode == http.StatusOK {
		decodeJSON(t, string(answer), &v)
		if got := res.Header.Get("X-Model-Sha256"); got != v.ModelSHA256 {
			t.Errorf("X-Model-Sha256 is %q, model_sha256 %q", got, v.ModelSHA256)
		}
	}
	return v, res.StatusCode
}

// nodes returns the answer of GET /cluster.
func (s *serving) nodes(t *testing.T) (self string, ids []string) {
	t.Helper()
	res, err := http.Get("http://" + s.address + "/cluster")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var a struct {
		Node  string
		Nodes []cluster.Node
	}
	if err := json.NewDecoder(res.Body).Decode(&a); err != nil {
		t.Fatal(err)
	}
	for _, n := range a.Nodes {
		ids = append(ids, n.ID)
	}
	return a.Node, ids
}

// Three processes serve the models that one of them stores, also while the owners of a model are
// stopped, and after one was killed.
func TestCluster_ServesModelsOfAnotherProcess(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	byID := map[string]*serving{}
	var all []*serving
	for range 3 {
		s := serve(t, nil, "--addr", "127.0.0.1:0", "--nats", url, "--replicas", "1")
		all = append(all, s)
	}
	for _, s := range all {
		eventually(t, "the nodes know each other", func() bool { _, ids := s.nodes(t); return len(ids) == len(all) })
		self, _ := s.nodes(t)
		byID[self] = s
	}
	models := func(s *serving, args ...string) string {
		t.Helper()
		r := run(t, append(append([]string{"models"}, args...), "--server", "http://"+s.address)...)
		if r.status != exitNormal {
			t.Fatalf("%v: exit %d: %s%s", args, r.status, r.stdout, r.stderr)
		}
		return r.stdout
	}
	// A name that the last process does not own.
	asker := all[2]
	self, ids := asker.nodes(t)
	name, owners := "", []string{self}
	for i := 0; slices.Contains(owners, self); i++ {
		name = "tiles-" + strconv.Itoa(i)
		owners = cluster.Owners(name, ids, 2)
	}
	image := read(t, tileFiles(t, "test/crack", 1)[0])
	models(all[0], "put", name, smallModel(t))
	var want inference.Verdict
	for i, s := range all[1:] {
		began := time.Now()
		v, status := s.judge(t, name, image)
		if status != 200 {
			t.Fatalf("status %d", status)
		}
		t.Logf("process %d judged by the new model after %s", i+1, time.Since(began))
		want = v
	}
	if v, _ := all[0].judge(t, name, image); v.AnomalyScore != want.AnomalyScore || v.ModelSHA256 != want.ModelSHA256 {
		t.Errorf("%+v, on another process %+v", v, want)
	}

	// A new version is on every process within a second, on a machine that is not busy.
	models(all[1], "threshold", name, "0.5")
	changed := time.Now()
	for _, s := range all {
		eventually(t, "the new threshold counts", func() bool { v, _ := s.judge(t, name, image); return v.Threshold == 0.5 })
	}
	t.Logf("the new version judged on all processes after %s", time.Since(changed))
	var versions []registry.Version
	decodeJSON(t, models(all[2], "versions", name, "--json"), &versions)
	if len(versions) != 2 || versions[0].Threshold != 0.5 {
		t.Errorf("%+v", versions)
	}

	// The asker judges itself while the owners are stopped.
	models(all[0], "put", "other", smallModel(t))
	for _, id := range owners {
		if err := byID[id].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if v, status := asker.judge(t, name, image); status != 200 || v.AnomalyScore != want.AnomalyScore {
		t.Errorf("with stopped owners: status %d, %+v", status, v)
	}
	t.Logf("with stopped owners it took %s", time.Since(began))
	for _, id := range owners {
		if err := byID[id].cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}

	// A process that is killed is forgotten.
	dead := byID[owners[0]]
	if err := dead.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-dead.ended
	dead.stopped = true
	killed := time.Now()
	if v, status := asker.judge(t, name, image); status != 200 || v.AnomalyScore != want.AnomalyScore {
		t.Errorf("after a kill: status %d, %+v", status, v)
	}
	eventually(t, "the killed process is forgotten", func() bool { _, left := asker.nodes(t); return !slices.Contains(left, owners[0]) })
	if took := time.Since(killed); took > 2*cluster.TTL+30*time.Second {
		t.Errorf("it took %s", took)
	} else {
		t.Logf("a killed process was forgotten after %s", took)
	}
	if text := models(byID[owners[1]], "list"); !strings.Contains(text, name) || !strings.Contains(text, "other") {
		t.Errorf("%s", text)
	}
	run(t, "serve", "--nats", url, "--models", t.TempDir()).refused(t, "--models", "--nats")
}
