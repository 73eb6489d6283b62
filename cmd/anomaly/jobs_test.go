package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/testkit"
)

// getJSON requests a path. It returns the status, or 0 when the service cannot be
// reached.
func (s *serving) getJSON(path string, v any) int {
	res, err := http.Get("http://" + s.address + path)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	if json.NewDecoder(res.Body).Decode(v) != nil {
		return 0
	}
	return res.StatusCode
}

// jobs returns the jobs of the service, and whether it could be reached.
func (s *serving) jobs() ([]jobs.Job, bool) {
	var list struct{ Jobs []jobs.Job }
	ok := s.getJSON("/jobs", &list) == http.StatusOK
	return list.Jobs, ok
}

// submitJob submits a job. It returns the status and the id, or 0 when the connection
// breaks.
func (s *serving) submitJob(body *bytes.Buffer, kind string) (int, string) {
	res, err := http.Post("http://"+s.address+"/jobs", kind, bytes.NewReader(body.Bytes()))
	if err != nil {
		return 0, ""
	}
	defer res.Body.Close()
	var j jobs.Job
	if json.NewDecoder(res.Body).Decode(&j) != nil {
		return 0, ""
	}
	return res.StatusCode, j.ID
}

// cancelJob cancels or removes a job and returns the status.
func (s *serving) cancelJob(t testing.TB, id string) int {
	t.Helper()
	r, err := http.NewRequest(http.MethodDelete, "http://"+s.address+"/jobs/"+id, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

func TestJobs_AreSubmittedWatchedAndDownloaded(t *testing.T) {
	token := write(t, t.TempDir(), "token", []byte("0123456789abcdef0123456789abcdef\n"))
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--data", t.TempDir(), "--token-file", token, "--models", t.TempDir())
	server := []string{"--server", "http://" + s.address + "/", "--token-file", token}
	with := func(args ...string) []string { return append(append([]string{"jobs"}, args...), server...) }
	folder := filepath.Join(tiles, "train/good")
	r := run(t, with("submit", folder, "--calibration", filepath.Join(tiles, "test/good"), "--level", "1", "--image-size", "32", "--name", "tiles", "--watch")...)
	id := strings.TrimSpace(r.stdout)
	if r.status != exitNormal || len(id) != 32 || !strings.HasSuffix(r.stderr, "succeeded\n") {
		t.Fatalf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	out := filepath.Join(t.TempDir(), "model.zip")
	for range 2 {
		if r := run(t, with("get", id, "--out", out, "--force")...); r.status != exitNormal {
			t.Fatalf("exit %d: %s", r.status, r.stderr)
		}
	}
	if r := run(t, "detect", "--model", out, tileFiles(t, "test/good", 1)[0]); r.status == exitError {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	}
	if r := run(t, with("watch", id)...); r.status != exitNormal || !strings.HasSuffix(r.stderr, "succeeded\n") {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	}
	r = run(t, with("list", "--json")...)
	var list []jobs.Job
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil || len(list) != 1 || list[0].State != jobs.Succeeded || list[0].Name != "tiles" {
		t.Errorf("%v: %s", err, r.stdout)
	}
	sum := sha256.Sum256(read(t, out))
	if list[0].ModelSHA256 == nil || *list[0].ModelSHA256 != hex.EncodeToString(sum[:]) {
		t.Error("the file has another hash than the job")
	}
	if r := run(t, with("list")...); !strings.Contains(r.stdout, id) || !strings.Contains(r.stdout, "100 %") {
		t.Errorf("%s", r.stdout)
	}
	if r := run(t, with("cancel", id)...); r.stdout != "succeeded\n" {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	run(t, with("get", id, "--out", out, "--force")...).refused(t, "No such job")
	run(t, with("watch", id)...).refused(t, "No such job")
	run(t, with("submit", write(t, t.TempDir(), "a.zip", []byte("prose")))...).refused(t, "not a readable ZIP file")
	run(t, with("submit", "/nowhere")...).refused(t, "/nowhere")
	run(t, "jobs", "list", "--server", "http://"+s.address).refused(t, "requires a token")
	run(t, "jobs", "list", "--server", "ftp://x").refused(t, "--server", "http://")
	run(t, "jobs", "lst").refused(t, "lst", "list")
	// A cancelled job is not a success.
	r = run(t, with("submit", folder, "--level", "5")...)
	id = strings.TrimSpace(r.stdout)
	if r := run(t, with("cancel", id)...); r.stdout != "cancelled\n" {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	if r := run(t, with("watch", id)...); r.status != exitError || !strings.HasSuffix(r.stderr, "anomaly: the job is cancelled\n") {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	}
}

func TestServe_GivesARunningJobBackAtSIGTERM(t *testing.T) {
	data, at := t.TempDir(), "127.0.0.1:"+testkit.FreePort(t)
	s := serve(t, nil, "--addr", at, "--data", data, "--grace", "30s")
	body, kind := trainForm(t, normals(t, 20), map[string]string{"level": "5", "image_size": "128"})
	status, id := s.submitJob(body, kind)
	if status != http.StatusAccepted {
		t.Fatal(status)
	}
	eventually(t, "the job runs", func() bool {
		var j jobs.Job
		s.getJSON("/jobs/"+id, &j)
		return j.State == jobs.Running && j.Progress.Phase != ""
	})
	watch := command(t, "jobs", "watch", id, "--server", "http://"+at)
	watched := make(chan ran, 1)
	stderr := &lockedBuffer{}
	watch.Stderr = stderr
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = watch.Wait()
		watched <- ran{watch.ProcessState.ExitCode(), "", stderr.String()}
	}()
	eventually(t, "the job is watched", func() bool { return stderr.String() != "" })
	if took := s.stop(t, syscall.SIGTERM); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	s = serve(t, nil, "--addr", at, "--data", data)
	eventually(t, "the job runs again", func() bool {
		var j jobs.Job
		s.getJSON("/jobs/"+id, &j)
		return j.State == jobs.Running && j.Attempts == 2
	})
	if r := run(t, "jobs", "cancel", id, "--server", "http://"+at); r.status != exitNormal {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	}
	if r := <-watched; r.status != exitError || !strings.HasSuffix(r.stderr, "cancelled\nanomaly: the job is cancelled\n") {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	}
	run(t, "serve", "--addr", "127.0.0.1:0", "--data", data, "--log-level", "error").refused(t, "in this folder")
}

func TestServe_RemovesTheJobsOfAKilledServer(t *testing.T) {
	killed := serve(t, nil, "--addr", "127.0.0.1:0")
	body, kind := trainForm(t, normals(t, 20), map[string]string{"level": "5", "image_size": "128"})
	if status, _ := killed.submitJob(body, kind); status != http.StatusAccepted {
		t.Fatal(status)
	}
	left := func() int {
		list, err := filepath.Glob(filepath.Join(killed.temp, "anomaly-jobs-*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	beside := serve(t, nil, "--addr", "127.0.0.1:0", "--temp-dir", killed.temp)
	if status, _ := beside.submitJob(body, kind); status != http.StatusAccepted || left() != 2 {
		t.Fatal(status, left())
	}
	killed.kill(t)
	serve(t, nil, "--addr", "127.0.0.1:0", "--temp-dir", killed.temp)
	if n := left(); n != 1 {
		t.Errorf("%d folders of jobs are left, expected the one of the running server", n)
	}
	if list, ok := beside.jobs(); !ok || len(list) != 1 {
		t.Errorf("%v", list)
	}
	beside.stop(t, syscall.SIGTERM)
	if n := left(); n != 0 {
		t.Errorf("%d folders of jobs are left", n)
	}
}
