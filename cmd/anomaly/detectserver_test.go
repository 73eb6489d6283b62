package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/deepmed/anomaly/internal/jobs"
)

// imageFolder returns a folder with tiles in folders, images that cannot be read, files that
// are no images, and n copies of a tile.
func imageFolder(t testing.TB, n int) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, data []byte) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, folder := range []string{"test/good", "test/crack"} {
		for i, f := range tileFiles(t, folder, 3) {
			data := read(t, f)
			put(filepath.Join(folder, filepath.Base(f)), data)
			if i == 0 {
				put(folder+"-more/damaged.jpg", data[:1000])
				put(folder+"-more/=formula, \"quoted\".jpg", data)
			}
		}
	}
	tile := read(t, tileFiles(t, "test/crack", 1)[0])
	for i := range n {
		put("many/"+strconv.Itoa(i)+".jpg", tile)
	}
	put("photo.heic", []byte("\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"))
	put("notes.txt", []byte("notes"))
	put("clip.mp4", []byte("\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"))
	put(".hidden.jpg", tile)
	if err := os.Symlink(filepath.Join(dir, "many"), filepath.Join(dir, "link.jpg")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestDetect_PrintsTheSameWithAService(t *testing.T) {
	model, folder := smallModel(t), imageFolder(t, 30)
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--data", t.TempDir())
	server := []string{"--server", "http://" + s.address}
	if r := run(t, append([]string{"models", "put", "tiles", model}, server...)...); r.status != exitNormal {
		t.Fatalf("exit %d: %s", r.status, r.stderr)
	}
	for _, flags := range [][]string{nil, {"--json"}, {"--csv"}, {"--json", "--threshold", "0.5"}, {"--threshold", "1e9"}} {
		here := run(t, append(append([]string{"detect", "--model", model}, flags...), folder)...)
		there := run(t, append(append(append([]string{"detect", "--model", "tiles"}, flags...), server...), folder)...)
		if here.status != exitError || strings.Count(here.stdout, "\n") < 40 { // some images cannot be read
			t.Fatalf("%q: exit %d: %s%s", flags, here.status, here.stdout, here.stderr)
		}
		if there.status != here.status || there.stdout != here.stdout || there.stderr != here.stderr {
			t.Errorf("%q: exit %d: %s%s\nwithout a service exit %d: %s%s", flags, there.status, there.stdout, there.stderr, here.status, here.stdout, here.stderr)
		}
	}
	if list, ok := s.jobs(); !ok || len(list) != 0 {
		t.Errorf("%d jobs are left", len(list))
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"detect", "--model", "other", folder}, "no such model: other"},
		{[]string{"detect", "--model", "tiles", folder, folder}, "the images of one folder"},
		{[]string{"detect", "--model", "tiles", filepath.Join(folder, "photo.heic")}, "the images of one folder"},
		{[]string{"detect", "--model", "tiles", "--threshold", "-1", folder}, "--threshold is -1"},
		{[]string{"jobs", "submit", "--kind", "detect", folder}, "--kind detect needs --model"},
		{[]string{"jobs", "submit", "--kind", "detect", "--model", "tiles", "--level", "2", folder}, "--level is not for --kind detect"},
		{[]string{"jobs", "submit", "--model", "tiles", folder}, "--model is not for --kind train"},
		{[]string{"jobs", "submit", "--kind", "judge", folder}, `--kind is "judge", expected train or detect`},
		{[]string{"jobs", "results", "none", "--out", filepath.Join(t.TempDir(), "out")}, "No such job"},
	} {
		r := run(t, append(c.args, server...)...)
		if r.status != exitError || !strings.Contains(strings.ToLower(r.stderr), strings.ToLower(c.want)) {
			t.Errorf("%q: exit %d: %s", c.args, r.status, r.stderr)
		}
	}
}

// detectionProgress returns the number of images that a job has judged.
func (s *serving) detectionProgress(id string) (j jobs.Job, judged int) {
	if s.getJSON("/jobs/"+id, &j) == http.StatusOK && j.Progress.Images != nil {
		judged = j.Progress.Images.Judged
	}
	return j, judged
}

func TestServe_ContinuesADetectionThatWasKilled(t *testing.T) {
	model, folder, data := smallModel(t), imageFolder(t, 500), t.TempDir()
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--data", data)
	put := run(t, "models", "put", "tiles", model, "--server", "http://"+s.address)
	submitted := run(t, "jobs", "submit", "--kind", "detect", "--model", "tiles", folder, "--server", "http://"+s.address)
	id := strings.TrimSpace(submitted.stdout)
	if put.status != exitNormal || len(id) != 32 {
		t.Fatalf("%s%s", put.stderr, submitted.stderr)
	}
	for round := range 2 {
		_, before := s.detectionProgress(id)
		eventually(t, "more images are judged", func() bool {
			j, n := s.detectionProgress(id)
			return n > before || j.State.Final()
		})
		s.kill(t)
		s = serve(t, nil, "--addr", "127.0.0.1:0", "--data", data)
		if j, _ := s.detectionProgress(id); j.State.Final() && round == 0 {
			t.Fatalf("the job is %s already", j.State)
		}
	}
	if r := run(t, "jobs", "watch", id, "--server", "http://"+s.address); r.status != exitNormal {
		t.Fatalf("exit %d: %s", r.status, r.stderr)
	}
	out := filepath.Join(t.TempDir(), "results.jsonl")
	if r := run(t, "jobs", "results", id, "--out", out, "--server", "http://"+s.address); r.status != exitNormal {
		t.Fatalf("exit %d: %s", r.status, r.stderr)
	}
	var want []result
	if err := json.Unmarshal([]byte(run(t, "detect", "--model", model, "--json", folder).stdout), &want); err != nil {
		t.Fatal(err)
	}
	scores := map[string]float64{}
	for _, r := range want {
		if r.Verdict != nil {
			name, err := filepath.Rel(folder, r.File)
			if err != nil {
				t.Fatal(err)
			}
			scores[name] = r.AnomalyScore
		}
	}
	lines := strings.Split(strings.TrimSpace(string(read(t, out))), "\n")
	for _, line := range lines {
		var r result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if score, ok := scores[r.File]; ok != (r.Verdict != nil) || ok && r.AnomalyScore != score {
			t.Errorf("%s differs from a detection without a service, twice in the results or not an image", line)
		}
		delete(scores, r.File)
	}
	if len(scores) > 0 {
		t.Errorf("%d images have no result", len(scores))
	}
	s.stop(t, syscall.SIGTERM)
}
