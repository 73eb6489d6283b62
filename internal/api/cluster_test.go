package api

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/testkit"
)

// startCluster runs a service and a worker of a cluster.
func startCluster(t testing.TB) (serve, worker *service) {
	t.Helper()
	url := brokertest.InProcess(t).URL()
	return startServing(t, url), startWorking(t, url)
}

func startServing(t testing.TB, url string) *service {
	t.Helper()
	b := brokertest.Open(t, url, nil)
	return start(t, func(o *Options) { o.Broker = b })
}

func startWorking(t testing.TB, url string) *service {
	t.Helper()
	b := brokertest.Open(t, url, nil)
	return start(t, func(o *Options) { o.Broker, o.Work, o.ProbesOnly = b, JobKinds(), true })
}

// noJobs reports whether no job is stored.
func noJobs(s *service) bool { return len(s.jobs.existing().List()) == 0 }

func TestCluster_AnswersATrainingAsAServiceAlone(t *testing.T) {
	alone := start(t, nil)
	serve, _ := startCluster(t)
	for name, form := range map[string][]part{
		"calibrated":   smallTraining(trainingZip(t, 20, map[string][]byte{"broken.png": []byte("prose")}), calibrationPart(t, 8)),
		"limited time": smallTraining(trainingZip(t, 16, nil), text("max_seconds", "3600")),
		"no zip":       {text("level", "1")},
		"bad level":    {file("zipFile", "a.zip", trainingZip(t, 2, nil)), text("level", "9")},
		"no image":     smallTraining(testkit.Zip(t, map[string][]byte{"a.txt": []byte("prose")})),
		"broken image": smallTraining(testkit.Zip(t, map[string][]byte{"a.png": []byte("prose")})),
		"few images":   smallTraining(trainingZip(t, 20, nil), file("calibrationFile", "c.zip", calibrationZip(t, 2, nil))),
		"little time":  smallTraining(trainingZip(t, 20, nil), text("max_seconds", "0.001")),
	} {
		t.Run(name, func(t *testing.T) {
			want, got := alone.post(t, "/train", form...), serve.post(t, "/train", form...)
			if got.status != want.status {
				t.Fatalf("status %d: %.300s; alone %d: %.300s", got.status, got.body, want.status, want.body)
			}
			for _, key := range []string{"Content-Type", "Content-Disposition", headerTrainingEnded, headerTrainingEpochs, headerTrainingWarnings, headerCalibrationImages, headerCalibrationFalseAlarms, headerCalibrationWarnings} {
				if g, w := got.header.Get(key), want.header.Get(key); g != w {
					t.Errorf("%s: %q, alone %q", key, g, w)
				}
			}
			// With a limit, the model depends on the time.
			if name != "limited time" && !bytes.Equal(got.body, want.body) {
				t.Errorf("%d bytes, %.300s; alone %d, %.300s", len(got.body), got.body, len(want.body), want.body)
			}
			eventually(t, "the job is removed", func() bool { return noJobs(serve) })
		})
	}
}

func TestCluster_RemovesTheJobOfAClientThatLeaves(t *testing.T) {
	serve, worker := startCluster(t)
	ctx, leave := context.WithCancel(t.Context())
	answered := serve.trainAs(t, ctx, "my_training-1", longTraining(t)...)
	eventually(t, "the job runs", func() bool {
		j, err := worker.jobs.existing().Get("my_training-1")
		return err == nil && j.State == jobs.Running && j.Progress.Phase != ""
	})
	if j := serve.job(t, "my_training-1"); !j.Attached {
		t.Errorf("%+v", j)
	}
	leave()
	<-answered
	eventually(t, "the job is removed", func() bool { return noJobs(serve) && noJobs(worker) })
	eventually(t, "the worker is free", func() bool { return worker.trainingSlots.running() == 0 })
}

func TestCluster_CancelsATrainingByAnotherService(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	serve, other := startServing(t, url), startServing(t, url)
	answered := serve.trainAs(t, t.Context(), "my_training-1", longTraining(t)...)
	eventually(t, "the job waits", func() bool { return other.request(t, "GET", "/jobs/my_training-1", nil).status == 200 })
	if a := other.request(t, "GET", "/jobs", nil); strings.Count(string(a.body), `"my_training-1"`) != 1 {
		t.Errorf("jobs: %s", a.body)
	}
	if a := serve.request(t, "GET", "/jobs", nil); strings.Count(string(a.body), `"my_training-1"`) != 1 {
		t.Errorf("jobs of the service with the request: %s", a.body)
	}
	if a := other.request(t, "DELETE", "/jobs/my_training-1", nil); a.status != 200 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := <-answered; a.status != 409 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestCluster_WorkerServesOnlyProbes(t *testing.T) {
	_, worker := startCluster(t)
	for path, status := range map[string]int{"/livez": 200, "/readyz": 200, "/health": 200, "/metrics": 200, "/jobs": 404, "/models": 404, "/": 404} {
		if a := worker.request(t, "GET", path, nil); a.status != status {
			t.Errorf("%s: status %d: %.200s", path, a.status, a.body)
		}
	}
}

func TestCluster_AnswersUnavailableWithoutServers(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the servers")
	}
	nats := brokertest.InProcess(t)
	serve := startServing(t, nats.URL())
	nats.Stop()
	began := time.Now()
	a := serve.request(t, "GET", "/jobs/0123456789abcdef0123456789abcdef", nil)
	if a.status != 503 || a.header.Get("Retry-After") == "" || !strings.Contains(a.message(t), "NATS servers do not answer") || time.Since(began) > 30*time.Second {
		t.Errorf("status %d after %s: %s", a.status, time.Since(began), a.body)
	}
	nats.Start()
	eventually(t, "the service answers again", func() bool {
		return serve.request(t, "GET", "/jobs/0123456789abcdef0123456789abcdef", nil).status == 404
	})
}

func TestJobs_AcceptAKeyOnce(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	alone := start(t, nil)
	for name, services := range map[string][2]*service{"alone": {alone, alone}, "cluster": {startServing(t, url), startServing(t, url)}} {
		t.Run(name, func(t *testing.T) {
			zipped := trainingZip(t, 2, nil)
			send := func(s *service, key []string, parts ...part) answer {
				body, kind := encode(t, parts...)
				header := http.Header{"Content-Type": {kind}}
				if key != nil {
					header["Idempotency-Key"] = key
				}
				return s.do(t, s.newRequest(t, "POST", "/jobs", header, body))
			}
			first := send(services[0], []string{"a-1"}, smallTraining(zipped)...)
			again := send(services[1], []string{"a-1"}, smallTraining(zipped)...)
			if first.status != 202 || again.status != 202 || first.header.Get("Idempotent-Replayed") != "" || again.header.Get("Idempotent-Replayed") != "true" {
				t.Fatalf("status %d and %d: %s %s", first.status, again.status, first.body, again.body)
			}
			if a, b := as[jobs.Job](t, first).ID, as[jobs.Job](t, again).ID; a != b || again.header.Get("Location") != "/jobs/"+a {
				t.Errorf("jobs %s and %s", a, b)
			}
			if other := send(services[0], nil, smallTraining(zipped)...); other.status != 202 || as[jobs.Job](t, other).ID == as[jobs.Job](t, first).ID {
				t.Errorf("status %d without a key: %s", other.status, other.body)
			}
			if a := send(services[1], []string{"a-1"}, smallTraining(trainingZip(t, 3, nil))...); a.status != 422 || !strings.Contains(a.message(t), "use a new key") {
				t.Errorf("status %d for another upload: %s", a.status, a.body)
			}
			for _, bad := range []string{"a b", strings.Repeat("x", 256), "ä"} {
				if a := send(services[0], []string{bad}, smallTraining(zipped)...); a.status != 400 || !strings.Contains(a.message(t), "Idempotency-Key") {
					t.Errorf("status %d for the key %.20q: %s", a.status, bad, a.body)
				}
			}
			if list := services[0].jobs.existing().List(); len(slices.DeleteFunc(list, func(j jobs.Job) bool { return j.Attached })) != 2 {
				t.Errorf("%d jobs, want 2", len(list))
			}
		})
	}
}
