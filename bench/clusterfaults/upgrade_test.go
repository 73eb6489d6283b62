package clusterfaults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/testkit"
)

// previous returns the path of a binary of an earlier version.
func previous(t *testing.T) string {
	t.Helper()
	path := os.Getenv("ANOMALY_PREVIOUS")
	if path == "" {
		t.Skip("ANOMALY_PREVIOUS is not set; `make cluster-upgrade ANOMALY_PREVIOUS=binary` sets it")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// alone starts a service with a folder.
func alone(t *testing.T, binary, data string) *process {
	t.Helper()
	dir := t.TempDir()
	p := &process{t: t, name: filepath.Base(filepath.Dir(binary)) + " alone", binary: binary, dir: dir,
		address: "127.0.0.1:" + strconv.Itoa(brokertest.FreePort(t))}
	p.args = []string{"serve", "--addr", p.address, "--data", data, "--temp-dir", dir, "--threads", "1", "--checkpoint-interval", "100ms"}
	p.start()
	t.Cleanup(p.kill)
	if !p.ready(2 * time.Minute) {
		t.Fatalf("%s is not ready: %s", p.name, p.logTail())
	}
	return p
}

// longForm returns a training that takes long enough to be interrupted.
func longForm(t *testing.T) *form {
	t.Helper()
	f, err := newForm(testkit.Zip(t, testkit.Tiles(t, 8)), map[string]string{"level": "3", "image_size": "64"})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// epochOf waits until a running job is in an epoch, and returns it.
func epochOf(t *testing.T, c *client, id string, least int) jobs.Job {
	t.Helper()
	for range 1200 {
		j, err := c.job(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if j.State.Final() {
			t.Fatalf("the job ended before it could be interrupted: %+v", j)
		}
		if j.Progress.Epoch >= least {
			return j
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the job has not reached its epochs within a minute")
	return jobs.Job{}
}

// goesOn waits until a job that was interrupted runs again, and reports where: a checkpoint of
// another revision of the program is not used, so that no model is of two.
func goesOn(t *testing.T, c *client, id string, reached jobs.Job) {
	t.Helper()
	for range 1200 {
		j, err := c.job(t.Context(), id)
		switch {
		case err != nil:
			t.Fatal(err)
		case j.State.Final():
			t.Logf("the job has ended: %s, %d attempts", j.State, j.Attempts)
			return
		case j.Attempts > reached.Attempts && j.Progress.Epoch > 0:
			t.Logf("the training was interrupted in epoch %d of %d, and goes on in epoch %d", reached.Progress.Epoch, reached.Progress.Epochs, j.Progress.Epoch)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("the training does not go on within a minute")
}

// verdict returns what a stored model answers about an image.
func verdict(t *testing.T, c *client, name string, image []byte) map[string]any {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part, err := w.CreateFormFile("imageFile", "a.jpg")
	if err == nil {
		_, err = part.Write(image)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.retried(t.Context(), "POST", "/models/"+name+"/detect", w.FormDataContentType(), nil, b.Bytes())
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("status %d, %v: %.300s", a.status, err, a.body)
	}
	var v map[string]any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatal(err)
	}
	return map[string]any{"is_anomaly": v["is_anomaly"], "reconstruction_error": v["reconstruction_error"], "threshold": v["threshold"]}
}

// A folder of the previous version has jobs in all states, and models. The new version takes it
// over, and the previous one takes it back.
func TestUpgrade_TakesOverAFolderAndBack(t *testing.T) {
	before, after := previous(t), binary(t)
	for name, order := range map[string][2]string{"to the new version": {before, after}, "back to the previous version": {after, before}} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			p := alone(t, order[0], data)
			c := newClient([]*process{p})
			forms := trainingForms(t)
			named, err := newForm(testkit.Zip(t, testkit.Tiles(t, 8)), map[string]string{"level": "1", "image_size": "32", "name": "tiles"})
			if err != nil {
				t.Fatal(err)
			}
			submit := func(f *form) jobs.Job {
				t.Helper()
				j, err := c.submit(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				return j
			}
			finished := submit(named)
			if finished, err = c.end(t.Context(), finished.ID); err != nil || finished.State != jobs.Succeeded {
				t.Fatalf("%+v, %v", finished, err)
			}
			model, err := c.modelSum(t.Context(), finished.ID)
			if err != nil {
				t.Fatal(err)
			}
			var image []byte
			for _, image = range testkit.Tiles(t, 9) {
				break
			}
			judged := verdict(t, c, "tiles", image)
			running := submit(longForm(t))
			queued, cancelled := submit(forms[0]), submit(forms[0])
			if a, err := c.once(t.Context(), "DELETE", "/jobs/"+cancelled.ID, "", nil, nil); err != nil || a.status != http.StatusOK {
				t.Fatalf("status %d, %v", a.status, err)
			}
			reached := epochOf(t, c, running.ID, 4)
			p.kill()
			time.Sleep(200 * time.Millisecond)

			c = newClient([]*process{alone(t, order[1], data)})
			if sum, err := c.modelSum(t.Context(), finished.ID); err != nil || sum != model {
				t.Errorf("the model of a finished job is another: %v", err)
			}
			if now := verdict(t, c, "tiles", image); fmt.Sprint(now) != fmt.Sprint(judged) {
				t.Errorf("the stored model answers %v, before %v", now, judged)
			}
			if j, err := c.job(t.Context(), cancelled.ID); err != nil || j.State != jobs.Cancelled {
				t.Errorf("the cancelled job: %+v, %v", j, err)
			}
			goesOn(t, c, running.ID, reached)
			for _, id := range []string{running.ID, queued.ID} {
				if j, err := c.end(t.Context(), id); err != nil || j.State != jobs.Succeeded {
					t.Errorf("%+v, %v", j, err)
				}
			}
			if j, _ := c.job(t.Context(), running.ID); j.Attempts != 2 {
				t.Errorf("the interrupted job has %d attempts", j.Attempts)
			}
		})
	}
}

// Services and workers of two versions do the jobs of each other, while one after the other is
// replaced.
func TestUpgrade_RollsThroughACluster(t *testing.T) {
	before, after := previous(t), binary(t)
	if help, err := exec.Command(before, "serve", "--help").CombinedOutput(); err != nil || !strings.Contains(string(help), "--nats ") {
		t.Skip("the previous version has no clusters")
	}
	c := brokertest.Start(t, 3)
	start := func(binary, role string, i int) *process {
		p := newProcess(t, c, binary, role, i, "--checkpoint-interval", "100ms")
		if !p.ready(2 * time.Minute) {
			t.Fatalf("%s is not ready: %s", p.name, p.logTail())
		}
		return p
	}
	oldServe, newServe := start(before, "serve", 0), start(after, "serve", 1)
	through := map[string]*client{"previous": newClient([]*process{oldServe}), "new": newClient([]*process{newServe})}
	forms := trainingForms(t)[:2]
	// The long job is interrupted in one version and ends in the other.
	for _, versions := range [][2]string{{before, after}, {after, before}} {
		first := start(versions[0], "worker", 0)
		l := &load{t: t, client: through["new"], forms: forms, accepted: map[string]bool{}, ended: map[string]jobs.Job{}, cancelled: map[string]bool{}}
		l.measure(t.Context(), through["previous"])
		for name, client := range through {
			l.client = client
			for _, f := range forms {
				j, err := client.submit(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				l.client = through[map[string]string{"previous": "new", "new": "previous"}[name]]
				if err := l.check(t.Context(), j.ID, f); err != nil {
					t.Errorf("a job through the %s service: %v", name, err)
				}
			}
		}
		j, err := through["previous"].submit(t.Context(), longForm(t))
		if err != nil {
			t.Fatal(err)
		}
		reached := epochOf(t, through["new"], j.ID, 4)
		first.end(syscall.SIGTERM)
		second := start(versions[1], "worker", 1)
		goesOn(t, through["new"], j.ID, reached)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		if j, err := through["previous"].end(ctx, j.ID); err != nil || j.State != jobs.Succeeded || j.Attempts != 2 {
			t.Errorf("%+v, %v", j, err)
		}
		cancel()
		second.end(syscall.SIGTERM)
	}
}
