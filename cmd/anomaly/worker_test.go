package main

import (
	"encoding/json"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/jobs"
)

func TestCluster_RejectsFlagsThatCannotBe(t *testing.T) {
	for name, test := range map[string]struct {
		args  []string
		words string
	}{
		"a worker without servers":       {[]string{"worker"}, "--nats or NATS_URL"},
		"two replicas":                   {[]string{"worker", "--nats", "nats://127.0.0.1:1", "--replicas", "2"}, "1, 3 or 5"},
		"a certificate without its key":  {[]string{"worker", "--nats", "nats://127.0.0.1:1", "--nats-cert", "a.pem"}, "--nats-key"},
		"credentials that are not there": {[]string{"serve", "--nats", "nats://127.0.0.1:1", "--nats-creds", "/nonexistent/a.creds"}, "/nonexistent/a.creds"},
		"an unknown kind":                {[]string{"worker", "--nats", "nats://127.0.0.1:1", "--kinds", "train,walk"}, `"walk"`},
		"no job at once":                 {[]string{"worker", "--nats", "nats://127.0.0.1:1", "--parallel", "0"}, "--parallel"},
		"a folder and servers":           {[]string{"serve", "--nats", "nats://127.0.0.1:1", "--data", "x"}, "exclude each other"},
	} {
		t.Run(name, func(t *testing.T) { run(t, test.args...).refused(t, test.words) })
	}
}

// A worker at its end gives its job back, and another one ends it.
func TestWorker_GivesItsJobBackAtSIGTERM(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	cluster := []string{"--nats", url, "--replicas", "1"}
	service := serve(t, nil, append([]string{"--addr", "127.0.0.1:0"}, cluster...)...)
	body, kind := trainForm(t, normals(t, 8), map[string]string{"level": "3", "image_size": "64"})
	res, err := http.Post("http://"+service.address+"/jobs", kind, body)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var j jobs.Job
	if err := json.NewDecoder(res.Body).Decode(&j); err != nil || res.StatusCode != http.StatusAccepted {
		t.Fatalf("status %d, %v", res.StatusCode, err)
	}
	job := func() (j2 jobs.Job) {
		list, _ := service.jobs()
		for _, other := range list {
			if other.ID == j.ID {
				return other
			}
		}
		return j2
	}
	worker := append([]string{"worker", "--addr", "127.0.0.1:0", "--checkpoint-interval", "100ms"}, cluster...)
	first := command(t, worker...)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job runs", func() bool { return job().State == jobs.Running })
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := first.Wait(); err != nil || time.Since(began) > 20*time.Second {
		t.Errorf("the worker ends with %v after %s", err, time.Since(began))
	}
	if got := job(); got.State != jobs.Queued || got.Attempts != 1 {
		t.Errorf("%+v", got)
	}
	second := command(t, worker...)
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = second.Process.Kill() // it may have ended
		_ = second.Wait()         // it was killed
	}()
	eventually(t, "the job has ended", func() bool { return job().State.Final() })
	if got := job(); got.State != jobs.Succeeded || got.Attempts != 2 {
		t.Errorf("%+v", got)
	}
}
