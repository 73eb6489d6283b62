package api

import (
	"bytes"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/telemetry/telemetrytest"
)

// ofTrace is a trace of a client.
const (
	ofTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	ofClient = "00f067aa0ba902b7"
)

// traced sends a form within the trace of a client.
func (s *service) traced(t testing.TB, path string, parts ...part) answer {
	t.Helper()
	body, kind := encode(t, parts...)
	return s.do(t, s.newRequest(t, http.MethodPost, path, http.Header{"Content-Type": {kind}, "Traceparent": {"00-" + ofTrace + "-" + ofClient + "-01"}}, body))
}

// chain fails the test unless each name has a span under one of the name before it. The
// first is under the client's.
func chain(t testing.TB, spans map[string][]telemetrytest.Span, names ...string) {
	t.Helper()
	parents := []string{ofClient}
	for _, name := range names {
		var ids []string
		for _, s := range spans[name] {
			if slices.Contains(parents, s.Parent) && !s.Ended.Before(s.Began) {
				ids = append(ids, s.ID)
			}
		}
		if len(ids) == 0 {
			t.Errorf("no span %q under the one before it in %q; there are %q", name, names, slices.Sorted(maps.Keys(spans)))
			return
		}
		parents = ids
	}
}

func TestTrace_SpansServiceQueueAndWorker(t *testing.T) {
	receiver := telemetrytest.Start(t)
	serve, _ := startCluster(t)
	a := serve.traced(t, "/jobs", smallTraining(trainingZip(t, 12, nil))...)
	if a.status != http.StatusAccepted {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	id := as[jobs.Job](t, a).ID
	eventually(t, "the job ends", func() bool { return serve.job(t, id).State.Final() })
	eventually(t, "the spans arrive", func() bool { return len(receiver.Spans(ofTrace)["job run"]) > 0 })
	spans := receiver.Spans(ofTrace)
	chain(t, spans, "POST /jobs", "job submit", "job run")
	chain(t, spans, "POST /jobs", "job submit", "job wait")
	run := spans["job run"][0]
	phases := 0
	for _, list := range spans {
		for _, s := range list {
			if s.Parent == run.ID {
				phases++
			}
		}
	}
	if phases < 2 {
		t.Errorf("%d phases under the job's run; spans %q", phases, slices.Sorted(maps.Keys(spans)))
	}
	if got := run.Attributes["job.id"]; got != id || run.Failed {
		t.Errorf("job.id %q, failed %v", got, run.Failed)
	}
	if got := spans["POST /jobs"][0].Attributes["http.route"]; got != "/jobs" {
		t.Errorf("http.route %q", got)
	}
	if wait := spans["job wait"][0]; wait.Ended.After(run.Ended) || wait.Began.After(run.Began) {
		t.Errorf("waits from %v to %v, runs from %v", wait.Began, wait.Ended, run.Began)
	}
}

func TestTrace_SpansThePiecesOfABulkJob(t *testing.T) {
	receiver := telemetrytest.Start(t)
	serve, _ := startCluster(t)
	serve.mustPut(t, "tiles", trained(t)["autoencoder.pt"])
	a := serve.traced(t, "/jobs", text("kind", "detect"), text("model", "tiles"), file("images", "i.zip", trainingZip(t, 12, nil)))
	if a.status != http.StatusAccepted {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	id := as[jobs.Job](t, a).ID
	eventually(t, "the job ends", func() bool { return serve.job(t, id).State.Final() })
	if j := serve.job(t, id); j.State != jobs.Succeeded {
		t.Fatalf("%+v", j)
	}
	eventually(t, "the spans arrive", func() bool { return len(receiver.Spans(ofTrace)["job run"]) > 0 })
	chain(t, receiver.Spans(ofTrace), "POST /jobs", "job submit", "job run", "piece store", "piece", "onnxruntime run")
}

func TestTrace_FollowsTheClientAndSkipsProbes(t *testing.T) {
	receiver := telemetrytest.Start(t)
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "tiles", trained(t)["autoencoder.pt"])
	if a := s.traced(t, "/models/tiles/detect", imagePart(t)); a.status != http.StatusOK {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if a := s.traced(t, "/models/none/detect", imagePart(t)); a.status != http.StatusNotFound {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	header := http.Header{"Traceparent": {"00-" + ofTrace + "-" + ofClient + "-01"}}
	for _, path := range quietRoutes {
		s.request(t, http.MethodGet, path, header)
	}
	for _, bad := range []string{"00-" + strings.Repeat("0", 32) + "-" + ofClient + "-01", "nonsense", strings.Repeat("9", 4000)} {
		if a := s.request(t, http.MethodGet, "/jobs", http.Header{"Traceparent": {bad}, "Tracestate": {strings.Repeat("a=b,", 1000)}}); a.status != http.StatusOK {
			t.Errorf("status %d for the trace %.50q", a.status, bad)
		}
	}
	const route = "POST /models/:name/detect"
	eventually(t, "the spans arrive", func() bool { return len(receiver.Spans(ofTrace)[route]) == 2 })
	spans := receiver.Spans(ofTrace)
	chain(t, spans, route, "onnxruntime run")
	if names := slices.Sorted(maps.Keys(spans)); len(names) != 2 {
		t.Errorf("spans %q, expected those of the detection only", names)
	}
}

func TestTrace_ChangesNothingWhileItIsOff(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "tiles", trained(t)["autoencoder.pt"])
	with, without := s.traced(t, "/models/tiles/detect", imagePart(t)), s.post(t, "/models/tiles/detect", imagePart(t))
	if with.status != http.StatusOK || !bytes.Equal(with.body, without.body) {
		t.Errorf("status %d: %s; without a trace %s", with.status, with.body, without.body)
	}
}
