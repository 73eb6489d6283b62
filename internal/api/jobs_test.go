package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
)

// submit submits a job.
func (s *service) submit(t testing.TB, parts ...part) jobs.Job {
	t.Helper()
	a := s.post(t, "/jobs", parts...)
	if a.status != http.StatusAccepted {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	j := as[jobs.Job](t, a)
	if a.header.Get("Location") != "/jobs/"+j.ID || j.State != jobs.Queued && j.State != jobs.Running || j.Kind != "train" {
		t.Errorf("Location %q: %s", a.header.Get("Location"), a.body)
	}
	return j
}

// job returns a job.
func (s *service) job(t testing.TB, id string) jobs.Job {
	t.Helper()
	return as[jobs.Job](t, s.request(t, "GET", "/jobs/"+id, nil))
}

// becomes waits until a job has a state.
func (s *service) becomes(t *testing.T, id string, state jobs.State) jobs.Job {
	t.Helper()
	var j jobs.Job
	eventually(t, fmt.Sprintf("the job is %s", state), func() bool {
		j = s.job(t, id)
		if j.State.Final() && j.State != state {
			t.Fatalf("the job is %s, expected %s: %v", j.State, state, *j.Error)
		}
		return j.State == state
	})
	return j
}

// longTraining returns the form of a training that takes minutes.
func longTraining(t testing.TB, more ...part) []part {
	t.Helper()
	return append([]part{file("zipFile", "a.zip", trainingZip(t, 20, nil)), text("level", "5"), text("image_size", "128")}, more...)
}

// event is a server-sent event.
type event struct {
	id, kind string
	job      jobs.Job
}

// events reads the events of a job to the end of the stream.
func (s *service) events(t testing.TB, id, last string) (status int, list []event) {
	t.Helper()
	r := s.newRequest(t, "GET", "/jobs/"+id+"/events", http.Header{"Last-Event-Id": {last}}, nil)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if kind := res.Header.Get("Content-Type"); res.StatusCode == 200 && kind != "text/event-stream" {
		t.Errorf("Content-Type %q", kind)
	}
	var e event
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ": ")
		switch key {
		case "id":
			e.id = value
		case "event":
			e.kind = value
		case "data":
			if err := json.Unmarshal([]byte(value), &e.job); err != nil {
				t.Fatal(err)
			}
		case "":
			if e.id != "" {
				list = append(list, e)
			}
			e = event{}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, list
}

func TestJobs_TrainAModelAndStoreItUnderItsName(t *testing.T) {
	s, _ := startWithModels(t, nil)
	j := s.submit(t, smallTraining(trainingZip(t, 20, map[string][]byte{"broken.png": []byte("prose")}), text("name", "tiles"),
		file("calibrationFile", "c.zip", calibrationZip(t, 8, nil)), file("baseModel", "b", nil))...)
	_, list := s.events(t, j.ID, "")
	if len(list) < 2 {
		t.Fatalf("%d events", len(list))
	}
	end := list[len(list)-1]
	if end.kind != "state" || end.job.State != jobs.Succeeded {
		t.Fatalf("%+v, %v", end, end.job.Error)
	}
	j = s.becomes(t, j.ID, jobs.Succeeded)
	if j.Attempts != 1 || j.StartedAt == nil || j.EndedAt == nil || j.Error != nil || j.Progress.Fraction != 1 || j.Name != "tiles" ||
		!strings.Contains(strings.Join(j.Warnings, "\n"), "skipped images: 1") {
		t.Errorf("%+v", j)
	}
	a := s.request(t, "GET", "/jobs/"+j.ID+"/model", nil)
	sum := sha256.Sum256(a.body)
	if a.status != 200 || a.header.Get("Content-Type") != "application/zip" || a.length != int64(len(a.body)) ||
		!strings.Contains(a.header.Get("Content-Disposition"), "anomaly_detection_model.zip") || hex.EncodeToString(sum[:]) != *j.ModelSHA256 {
		t.Errorf("status %d, %v, %d bytes", a.status, a.header, a.length)
	}
	if m := metadataOf(t, unzip(t, a.body)); m.ImageSize != 16 || m.Decision.CalibratedOn == nil {
		t.Errorf("%+v", m)
	}
	if a := s.byName(t, "tiles", tile(t, testGood)); a.status != 200 || as[map[string]any](t, a)["model_sha256"] != *j.ModelSHA256 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := s.request(t, "GET", "/models/tiles/versions", nil); a.status != 200 || !strings.Contains(string(a.body), "trained by job "+j.ID) {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := s.request(t, "DELETE", "/jobs/"+j.ID, nil); a.status != 200 || as[jobs.Job](t, a).ID != j.ID {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	for _, path := range []string{"", "/model", "/events"} {
		if a := s.request(t, "GET", "/jobs/"+j.ID+path, nil); a.status != 404 || a.message(t) != "No such job" {
			t.Errorf("status %d: %s", a.status, a.body)
		}
	}
	s.keepsNoUpload(t)
}

func TestJobs_EventsResumeAfterTheLastID(t *testing.T) {
	s := start(t, nil)
	j := s.submit(t, smallTraining(trainingZip(t, 2, nil))...)
	_, list := s.events(t, j.ID, "")
	last := list[len(list)-1]
	seen := map[string]bool{}
	for i, e := range list {
		if seen[e.id] || e.kind != "state" && e.kind != "progress" || (e.kind == "progress") == (i == 0 || list[i-1].job.State != e.job.State) {
			t.Errorf("event %d: %+v", i, e)
		}
		seen[e.id] = true
	}
	for _, resumed := range []string{"", "0", "prose", "99999999", list[0].id} {
		status, again := s.events(t, j.ID, resumed)
		if status != 200 || len(again) != 1 || again[0].id != last.id || again[0].kind != "state" {
			t.Errorf("after %q: status %d, %+v", resumed, status, again)
		}
	}
	if status, again := s.events(t, j.ID, last.id); status != 204 || len(again) != 0 {
		t.Errorf("status %d, %+v", status, again)
	}
}

func TestJobs_EventsEndWhenTheClientLeaves(t *testing.T) {
	s := start(t, nil)
	j := s.submit(t, longTraining(t)...)
	ctx, leave := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", s.url+"/jobs/"+j.ID+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	eventually(t, "the stream is open", func() bool { return s.app.Server().GetOpenConnectionsCount() > 0 })
	leave()
	http.DefaultClient.CloseIdleConnections()
	eventually(t, "the stream is closed", func() bool { return s.app.Server().GetOpenConnectionsCount() == 0 })
}

func TestJobs_ARunningJobIsCancelledWithinASecond(t *testing.T) {
	s := start(t, nil)
	first, second := s.submit(t, longTraining(t)...), s.submit(t, longTraining(t)...)
	s.becomes(t, first.ID, jobs.Running)
	if a := s.request(t, "GET", "/jobs/"+first.ID+"/model", nil); a.status != 409 || !strings.HasPrefix(a.message(t), "The job has no model") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if got := s.job(t, second.ID); got.State != jobs.Queued {
		t.Errorf("%+v", got)
	}
	list := as[map[string][]jobs.Job](t, s.request(t, "GET", "/jobs", nil))["jobs"]
	if len(list) != 2 || list[0].ID != second.ID || list[1].ID != first.ID {
		t.Errorf("%+v", list)
	}
	for _, j := range []jobs.Job{second, first} {
		started := time.Now()
		a := s.request(t, "DELETE", "/jobs/"+j.ID, nil)
		if got := as[jobs.Job](t, a); a.status != 200 || got.State != jobs.Cancelled || got.EndedAt == nil || time.Since(started) > time.Second {
			t.Errorf("status %d after %s: %s", a.status, time.Since(started), a.body)
		}
	}
	eventually(t, "the slot is free", func() bool { return s.trainingSlots.running() == 0 })
	if got := s.job(t, first.ID); got.State != jobs.Cancelled || got.Attempts != 1 {
		t.Errorf("%+v", got)
	}
	metrics := string(s.request(t, "GET", "/metrics", nil).body)
	for _, want := range []string{`anomaly_jobs{state="cancelled"} 2`, `anomaly_jobs_ended_total{state="cancelled"} 2`, "anomaly_jobs_bytes 0"} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("the metrics do not contain %s", want)
		}
	}
}

func TestJobs_ShareTheTrainingSlot(t *testing.T) {
	s := start(t, func(o *Options) { o.WaitingTrainings = 0 })
	release := fill(t, s.trainingSlots)
	j := s.submit(t, smallTraining(trainingZip(t, 2, nil))...)
	time.Sleep(100 * time.Millisecond)
	if got := s.job(t, j.ID); got.State != jobs.Queued || got.StartedAt != nil {
		t.Errorf("%+v", got)
	}
	release()
	s.becomes(t, j.ID, jobs.Succeeded)
	j = s.submit(t, longTraining(t)...)
	s.becomes(t, j.ID, jobs.Running)
	if a := s.post(t, "/train", smallTraining(trainingZip(t, 1, nil))...); a.status != 503 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestJobs_RejectInvalidRequests(t *testing.T) {
	s := start(t, func(o *Options) { o.JobBytes, o.StoredJobs = 1<<30, 1 })
	zipped := trainingZip(t, 2, nil)
	for name, c := range map[string]struct {
		status  int
		message string
		parts   []part
	}{
		"no zip":              {400, "No ZIP file uploaded", []part{text("level", "1")}},
		"a bad level":         {400, "Level must be between 1 and 5", []part{file("zipFile", "a", zipped), text("level", "9")}},
		"no images":           {400, "No image files found in the uploaded dataset", []part{file("zipFile", "a", trainingZip(t, 0, map[string][]byte{"a.txt": nil}))}},
		"no zip at all":       {422, "The data set is not a readable ZIP file", []part{file("zipFile", "a", []byte("prose"))}},
		"a name, no registry": {404, "This service keeps no models", smallTraining(zipped, text("name", "tiles"))},
		"too little time":     {400, "The field max_seconds", smallTraining(zipped, text("max_seconds", "-1"))},
	} {
		if a := s.post(t, "/jobs", c.parts...); a.status != c.status || !strings.HasPrefix(a.message(t), c.message) {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
	if s.jobs.existing() != nil {
		t.Error("the queue is open although no job was accepted")
	}
	if a := s.request(t, "GET", "/jobs", nil); a.status != 200 || string(a.body) != `{"jobs":[]}` {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := s.request(t, "DELETE", "/jobs/x", nil); a.status != 404 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	release := fill(t, s.trainingSlots)
	j := s.submit(t, smallTraining(zipped)...)
	if a := s.post(t, "/jobs", smallTraining(zipped)...); a.status != 503 || a.header.Get("Retry-After") == "" || !strings.HasPrefix(a.message(t), "Too many jobs") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	release()
	s.becomes(t, j.ID, jobs.Succeeded)
}

func TestJobs_AreRefusedWhenTheStoreIsFull(t *testing.T) {
	s := start(t, func(o *Options) { o.JobBytes = 1 << 20 })
	a := s.post(t, "/jobs", smallTraining(trainingZip(t, 2, nil))...)
	if a.status != 507 || !strings.HasPrefix(a.message(t), "The store of jobs is full") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestJobs_FailWithTheSentenceOfTheTraining(t *testing.T) {
	s := start(t, nil)
	j := s.submit(t, smallTraining(trainingZip(t, 0, map[string][]byte{"a.png": []byte("prose")}))...)
	j = s.becomes(t, j.ID, jobs.Failed)
	if j.Error == nil || !strings.HasPrefix(*j.Error, "No image files found in the uploaded dataset") {
		t.Errorf("%+v, %v", j, j.Error)
	}
	s.keepsNoUpload(t)
}

func TestJobs_SurviveAShutdown(t *testing.T) {
	data := t.TempDir()
	change := func(o *Options) { o.DataDir = data }
	s := start(t, change)
	done := s.submit(t, smallTraining(trainingZip(t, 2, nil))...)
	s.becomes(t, done.ID, jobs.Succeeded)
	long, waiting := s.submit(t, longTraining(t)...), s.submit(t, smallTraining(trainingZip(t, 2, nil))...)
	s.becomes(t, long.ID, jobs.Running)
	if err := s.Shutdown(0); err != nil {
		t.Error(err)
	}
	again := start(t, change)
	if got := again.job(t, done.ID); got.State != jobs.Succeeded {
		t.Errorf("%+v", got)
	}
	if a := again.request(t, "GET", "/jobs/"+done.ID+"/model", nil); a.status != 200 {
		t.Errorf("status %d", a.status)
	}
	if got := again.becomes(t, long.ID, jobs.Running); got.Attempts != 2 {
		t.Errorf("%+v", got)
	}
	again.request(t, "DELETE", "/jobs/"+long.ID, nil)
	again.becomes(t, waiting.ID, jobs.Succeeded)
}

func TestJobs_WithoutAFolderLeaveNothing(t *testing.T) {
	parent := t.TempDir()
	s := start(t, func(o *Options) { o.TempDir = parent })
	s.submit(t, longTraining(t)...)
	if list, _ := filepath.Glob(filepath.Join(parent, "anomaly-jobs-*")); len(list) != 1 {
		t.Errorf("%v", list)
	}
	if err := s.Shutdown(0); err != nil {
		t.Error(err)
	}
	if list, _ := os.ReadDir(parent); len(list) != 0 {
		t.Errorf("left is %v", list)
	}
}

func TestOpenAPI_MatchesTheAnswersForJobs(t *testing.T) {
	s := start(t, nil)
	d, document := description(t, s)
	check := func(status int, method, path string, a answer) {
		t.Helper()
		if a.status != status {
			t.Errorf("%s %s: status %d, expected %d: %.300s", method, path, a.status, status, a.body)
		}
		conforms(t, d, document, method, path, a)
	}
	get := func(path string) answer { return s.request(t, "GET", path, nil) }
	check(200, "GET", "/jobs", get("/jobs"))
	check(404, "GET", "/jobs/{id}", get("/jobs/none"))
	check(400, "POST", "/jobs", s.post(t, "/jobs"))
	check(415, "POST", "/jobs", s.send(t, "POST", "/jobs", "text/plain", strings.NewReader("prose")))
	release := fill(t, s.trainingSlots)
	a := s.post(t, "/jobs", smallTraining(trainingZip(t, 2, nil))...)
	check(202, "POST", "/jobs", a)
	at := a.header.Get("Location")
	check(409, "GET", "/jobs/{id}/model", get(at+"/model"))
	release()
	check(200, "GET", "/jobs/{id}/events", get(at+"/events"))
	check(200, "GET", "/jobs/{id}", get(at))
	check(200, "GET", "/jobs/{id}/model", get(at+"/model"))
	check(200, "GET", "/jobs", get("/jobs"))
	check(200, "DELETE", "/jobs/{id}", s.request(t, "DELETE", at, nil))
	check(404, "DELETE", "/jobs/{id}", s.request(t, "DELETE", at, nil))
	check(404, "GET", "/jobs/{id}/events", get(at+"/events"))
	check(404, "GET", "/jobs/{id}/model", get(at+"/model"))
	s.draining.Store(true)
	check(503, "POST", "/jobs", s.post(t, "/jobs"))
	s.draining.Store(false)
}

func TestJobs_ContinueFromTheirLastCheckpoint(t *testing.T) {
	data := t.TempDir()
	change := func(o *Options) { o.DataDir, o.CheckpointInterval = data, time.Millisecond }
	s := start(t, change)
	form := []part{file("zipFile", "a.zip", trainingZip(t, 20, nil)), text("level", "1"), text("image_size", "128"), calibrationPart(t, 8)}
	want := s.post(t, "/train", form...)
	if want.status != 200 {
		t.Fatalf("status %d: %s", want.status, want.body)
	}
	j := s.submit(t, form...)
	eventually(t, "the job has done an epoch", func() bool { return s.job(t, j.ID).Progress.Epoch > 1 })
	before := s.job(t, j.ID)
	if err := s.Shutdown(0); err != nil {
		t.Error(err)
	}
	s = start(t, change)
	_, list := s.events(t, j.ID, "")
	for _, e := range list {
		if p := e.job.Progress; p.Epoch > 0 && p.Epoch < before.Progress.Epoch || len(e.job.Losses) != p.Epoch {
			t.Errorf("epoch %d with %d losses after epoch %d", p.Epoch, len(e.job.Losses), before.Progress.Epoch)
		}
	}
	j = s.becomes(t, j.ID, jobs.Succeeded)
	if j.Attempts != 2 || !slices.Equal(j.Losses[:1], before.Losses[:1]) {
		t.Errorf("%d attempts, losses %v, before %v", j.Attempts, j.Losses, before.Losses)
	}
	if got := s.request(t, "GET", "/jobs/"+j.ID+"/model", nil); !bytes.Equal(got.body, want.body) {
		t.Error("the model differs from that of a training without interruptions")
	}
	eventually(t, "the checkpoints are removed", func() bool {
		list, _ := filepath.Glob(filepath.Join(data, "jobs", "checkpoints", "*"))
		return len(list) == 0
	})
}

func TestJobs_OfSeveralCallersRunInTurns(t *testing.T) {
	tokens := []string{"the-token-of-caller-1", "the-token-of-caller-2"}
	s := start(t, func(o *Options) { o.Tokens = tokens })
	release := fill(t, s.trainingSlots)
	body, kind := encode(t, smallTraining(trainingZip(t, 1, nil))...)
	auth := func(caller int) http.Header {
		return http.Header{"Content-Type": {kind}, "Authorization": {"Bearer " + tokens[caller]}}
	}
	callers := map[string]int{} // by job
	for _, caller := range []int{0, 0, 0, 1} {
		a := s.do(t, s.newRequest(t, "POST", "/jobs", auth(caller), bytes.NewReader(body.Bytes())))
		if a.status != 202 {
			t.Fatalf("status %d: %s", a.status, a.body)
		}
		callers[as[jobs.Job](t, a).ID] = caller
	}
	release()
	var list []jobs.Job
	eventually(t, "all jobs have succeeded", func() bool {
		list = as[map[string][]jobs.Job](t, s.request(t, "GET", "/jobs", auth(1)))["jobs"]
		return !slices.ContainsFunc(list, func(j jobs.Job) bool { return j.State != jobs.Succeeded })
	})
	slices.SortFunc(list, func(a, b jobs.Job) int { return a.EndedAt.Compare(*b.EndedAt) })
	var order []int
	for _, j := range list {
		order = append(order, callers[j.ID])
	}
	if want := []int{0, 1, 0, 0}; !slices.Equal(order, want) {
		t.Errorf("the jobs of the callers ran in the order %v, expected %v", order, want)
	}
}
