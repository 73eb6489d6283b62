package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
)

// trainAs sends a training with an id of its job until ctx ends. The channel receives the
// answer, or one with status 0 if there was none.
func (s *service) trainAs(t testing.TB, ctx context.Context, id string, parts ...part) <-chan answer {
	t.Helper()
	body, kind := encode(t, parts...)
	r := s.newRequest(t, "POST", "/train", http.Header{"Content-Type": {kind}, "X-Job-Id": {id}}, body).WithContext(ctx)
	answered := make(chan answer, 1)
	go func() {
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			answered <- answer{}
			return
		}
		defer res.Body.Close()
		var data bytes.Buffer
		_, _ = data.ReadFrom(res.Body)
		answered <- answer{res.StatusCode, res.Header, res.ContentLength, data.Bytes()}
	}()
	return answered
}

func TestTrain_IsFollowedAsAJob(t *testing.T) {
	s := start(t, nil)
	const id = "my_training-1"
	release := fill(t, s.trainingSlots)
	answered := s.trainAs(t, t.Context(), id, smallTraining(trainingZip(t, 2, nil))...)
	eventually(t, "the job is there", func() bool { return s.request(t, "GET", "/jobs/"+id, nil).status == 200 })
	if j := s.job(t, id); j.State != jobs.Queued || !j.Attached || j.Kind != "train" || j.Losses == nil {
		t.Errorf("%+v", j)
	}
	events := make(chan []event)
	go func() {
		_, list := s.events(t, id, "")
		events <- list
	}()
	release()
	a := <-answered
	if a.status != 200 || a.header.Get("X-Job-Id") != id || a.length != int64(len(a.body)) {
		t.Fatalf("status %d, X-Job-Id %q: %.200s", a.status, a.header.Get("X-Job-Id"), a.body)
	}
	sum := sha256.Sum256(a.body)
	list := <-events
	last := list[len(list)-1]
	if last.kind != "state" || last.job.State != jobs.Succeeded || *last.job.ModelSHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("%+v", last)
	}
	if got, want := last.job.Losses, metadataOf(t, unzip(t, a.body)).TrainingLosses; len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("losses %v, expected %v", got, want)
	}
	if a := s.request(t, "GET", "/jobs/"+id+"/model", nil); a.status != 409 || !strings.Contains(a.message(t), "answer of its request") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if s.jobs.existing() != nil {
		t.Error("a training has opened the store of jobs")
	}
	s.keepsNoUpload(t)
	// The id may be used again.
	if a := <-s.trainAs(t, t.Context(), id, text("level", "1")); a.status != 400 || a.header.Get("X-Job-Id") != id {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if j := s.job(t, id); j.State != jobs.Failed || *j.Error != "No ZIP file uploaded" {
		t.Errorf("%+v", j)
	}
	if a := s.request(t, "DELETE", "/jobs/"+id, nil); a.status != 200 || s.request(t, "GET", "/jobs/"+id, nil).status != 404 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestTrain_AnswersWithTheModelOfAJob(t *testing.T) {
	s := start(t, nil)
	form := smallTraining(trainingZip(t, 20, nil), calibrationPart(t, 8))
	j := s.submit(t, form...)
	a := s.post(t, "/train", form...)
	s.becomes(t, j.ID, jobs.Succeeded)
	if model := s.request(t, "GET", "/jobs/"+j.ID+"/model", nil); a.status != 200 || !bytes.Equal(model.body, a.body) {
		t.Errorf("status %d: the models of /train and /jobs differ", a.status)
	}
	list := as[map[string][]jobs.Job](t, s.request(t, "GET", "/jobs", nil))["jobs"]
	if len(list) != 2 || list[0].ID != a.header.Get("X-Job-Id") || !list[0].Attached || list[1].ID != j.ID || list[1].Attached || list[1].Losses != nil {
		t.Errorf("%+v", list)
	}
}

func TestTrain_IsCancelledWithItsJob(t *testing.T) {
	s := start(t, nil)
	const first, second = "first-training", "second-training"
	running := s.trainAs(t, t.Context(), first, longTraining(t)...)
	s.becomes(t, first, jobs.Running)
	waiting := s.trainAs(t, t.Context(), second, longTraining(t)...)
	eventually(t, "a training waits", func() bool { return s.trainingSlots.waiting() == 1 })
	for id, answered := range map[string]<-chan answer{second: waiting, first: running} {
		began := time.Now()
		if a := s.request(t, "DELETE", "/jobs/"+id, nil); a.status != 200 || as[jobs.Job](t, a).State != jobs.Cancelled {
			t.Errorf("status %d: %s", a.status, a.body)
		}
		if a := <-answered; a.status != 409 || a.message(t) != "The job was cancelled" || time.Since(began) > time.Second {
			t.Errorf("status %d after %s: %s", a.status, time.Since(began), a.body)
		}
		if j := s.job(t, id); j.State != jobs.Cancelled || j.Error != nil {
			t.Errorf("%+v", j)
		}
	}
	eventually(t, "the slot is free", func() bool { return s.trainingSlots.running() == 0 })
	s.keepsNoUpload(t)
}

func TestTrain_IsCancelledDuringItsUpload(t *testing.T) {
	s := start(t, nil)
	body, kind := encode(t, longTraining(t)...)
	c := s.dial(t)
	fmt.Fprintf(c, "POST /train HTTP/1.1\r\nHost: x\r\nX-Job-Id: the-upload\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", kind, body.Len())
	if _, err := c.Write(body.Bytes()[:body.Len()/2]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the upload is stored", func() bool { return s.uploads(t) == 1 })
	if j := s.job(t, "the-upload"); j.State != jobs.Queued || j.Progress.Phase != "receiving the upload" {
		t.Errorf("%+v", j)
	}
	began := time.Now()
	s.request(t, "DELETE", "/jobs/the-upload", nil)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if took := time.Since(began); res.StatusCode != 409 || took > time.Second {
		t.Errorf("status %d after %s", res.StatusCode, took)
	}
	eventually(t, "the upload is removed", func() bool { return s.uploads(t) == 0 })
}

func TestTrain_CancelsItsJobWhenTheClientLeaves(t *testing.T) {
	s := start(t, nil)
	ctx, leave := context.WithCancel(t.Context())
	answered := s.trainAs(t, ctx, "the-training", longTraining(t)...)
	s.becomes(t, "the-training", jobs.Running)
	began := time.Now()
	leave()
	<-answered
	s.becomes(t, "the-training", jobs.Cancelled)
	eventually(t, "the slot is free", func() bool { return s.trainingSlots.running() == 0 })
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %s", took)
	}
	eventually(t, "the upload is removed", func() bool { return s.uploads(t) == 0 })
}

func TestTrain_RejectsIDsOfJobs(t *testing.T) {
	s := start(t, nil)
	zipped := trainingZip(t, 2, nil)
	release := fill(t, s.trainingSlots)
	defer release()
	stored := s.submit(t, smallTraining(zipped)...)
	first := s.trainAs(t, t.Context(), "in-use-by-train", smallTraining(zipped)...)
	eventually(t, "the training waits", func() bool { return s.trainingSlots.waiting() == 1 })
	for id, status := range map[string]int{
		"short": 400, "with space": 400, "../../etc/passwd": 400, strings.Repeat("a", 65): 400, "in-use-by-train": 409, stored.ID: 409,
	} {
		if a := <-s.trainAs(t, t.Context(), id, smallTraining(zipped)...); a.status != status || a.message(t) == "" {
			t.Errorf("%q: status %d: %s", id, a.status, a.body)
		}
	}
	s.request(t, "DELETE", "/jobs/in-use-by-train", nil)
	<-first
}
