package api

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/hostile"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/testkit"
)

// unharmed returns two checks. after checks that a hostile request left no file. atEnd
// checks that the service's memory has not grown and that the service still works.
func unharmed(t *testing.T, s *service) (after func(t *testing.T), atEnd func()) {
	t.Helper()
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	model, image := trained(t)["autoencoder.pt"], tile(t, testGood)
	good := func() {
		if a := s.post(t, "/detect", file("modelFile", "m", model), file("imageFile", "i", image)); a.status != 200 {
			t.Errorf("a good request: status %d: %s", a.status, a.body)
		}
	}
	good()
	runtime.GC()
	measured := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) == nil
	before, goroutines := memory(t, "VmRSS"), runtime.NumGoroutine()
	atEnd = func() {
		t.Helper()
		good()
		if most := memory(t, "VmHWM"); measured && most > before+maxGrowth {
			t.Errorf("the service grew from %d to %d bytes", before, most)
		}
		http.DefaultClient.CloseIdleConnections()
		eventually(t, "its goroutines have ended", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
	}
	after = func(t *testing.T) {
		s.keepsNoUpload(t)
		if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
			t.Errorf("files left: %v, %v", left, err)
		}
	}
	return after, atEnd
}

func TestDetect_RejectsHostileImages(t *testing.T) {
	s := start(t, nil)
	images := hostile.Images()
	if len(images) < 60 {
		t.Errorf("only %d images", len(images))
	}
	model := modelPart(t)
	after, atEnd := unharmed(t, s)
	defer atEnd()
	for _, i := range images {
		t.Run(i.Name, func(t *testing.T) {
			a := s.post(t, "/detect", model, file("imageFile", "i", i.Data))
			want := 422
			if i.Want == hostile.TooLarge {
				want = 413
			}
			if a.status != want {
				t.Errorf("status %d: %s; expected %d", a.status, a.body, want)
			}
			s.isOneSentence(t, a)
			after(t)
		})
	}
}

func TestTrain_SkipsHostileImages(t *testing.T) {
	s := start(t, nil)
	after, atEnd := unharmed(t, s)
	defer atEnd()
	files := map[string][]byte{}
	for i, f := range hostile.Images() {
		files[strings.Repeat("i", i+1)+".png"] = f.Data
	}
	files["good.png"] = hostile.Picture()
	a := s.post(t, "/train", smallTraining(testkit.Zip(t, files))...)
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	m := metadataOf(t, unzip(t, a.body))
	if m.Training.Images != 1 || m.Training.Skipped != len(files)-1 {
		t.Errorf("%d images, %d skipped of %d", m.Training.Images, m.Training.Skipped, len(files))
	}
	after(t)
}

func TestTrain_RejectsHostileDataSets(t *testing.T) {
	data := t.TempDir()
	s, _ := startWithModels(t, func(o *Options) {
		o.Dataset.Entries, o.Dataset.UnpackedBytes = 100, 64<<20
		o.DataDir = data
	})
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	versions := len(s.versions(t))
	canary := filepath.Join(t.TempDir(), "canary")
	sets := hostile.Datasets(canary)
	if len(sets) < 30 {
		t.Errorf("only %d data sets", len(sets))
	}
	s.jobOf(t, hostile.Dataset{Want: hostile.Trains, Data: trainingZip(t, 1, nil)}, answer{status: 200}) // opens what jobs need
	after, atEnd := unharmed(t, s)
	defer atEnd()
	for _, d := range sets {
		t.Run(d.Name, func(t *testing.T) {
			a := s.post(t, "/train", smallTraining(d.Data)...)
			want := map[hostile.Outcome]int{hostile.NotZip: 422, hostile.Oversized: 413, hostile.NoImages: 400, hostile.Trains: 200}[d.Want]
			if a.status != want {
				t.Errorf("status %d: %.300s; expected %d", a.status, a.body, want)
			}
			if a.status != 200 {
				s.isOneSentence(t, a)
			} else if m := metadataOf(t, unzip(t, a.body)); m.Training.Images < 1 {
				t.Errorf("trained on %d images", m.Training.Images)
			}
			// A training takes many times as long with the race detector.
			if raceFactor == 1 || d.Want != hostile.Trains {
				s.jobOf(t, d, a)
				s.calibratesOn(t, d, a)
			}
			for _, path := range []string{canary, canary + ".png"} {
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("%s was made", path)
				}
			}
			after(t)
		})
	}
	if got := len(s.versions(t)); got > versions+1 { // one of the data sets has a hundred images
		t.Errorf("%d versions, %d at the start", got, versions)
	}
	// The store keeps its own files, which are small.
	eventually(t, "the files of the jobs are removed", func() bool { return folderBytes(t, filepath.Join(data, "jobs")) < maxEmptyStore })
}

// maxEmptyStore bounds the size of the files of a store without jobs.
const maxEmptyStore = 1 << 20

// jobOf submits a job with a hostile data set, which must end as the answer a of /train,
// and removes it.
func (s *service) jobOf(t *testing.T, d hostile.Dataset, a answer) {
	t.Helper()
	submitted := s.post(t, "/jobs", smallTraining(d.Data)...)
	if submitted.status != http.StatusAccepted {
		if submitted.status != a.status || submitted.message(t) != a.message(t) {
			t.Errorf("as a job: status %d: %s; expected %d: %.300s", submitted.status, submitted.body, a.status, a.body)
		}
		return
	}
	j := as[jobs.Job](t, submitted)
	eventually(t, "the job has ended", func() bool {
		j = s.job(t, j.ID)
		return j.State.Final()
	})
	switch {
	case d.Want == hostile.Trains:
		if j.State != jobs.Succeeded {
			t.Errorf("the job is %s: %v", j.State, j.Error)
		}
	case j.State != jobs.Failed || *j.Error != a.message(t):
		t.Errorf("the job is %s: %v; expected the error %q", j.State, j.Error, a.message(t))
	}
	if removed := s.request(t, "DELETE", "/jobs/"+j.ID, nil); removed.status != 200 {
		t.Errorf("status %d: %s", removed.status, removed.body)
	}
	if states, bytes := s.jobs.stats(); bytes != 0 || states[j.State] != 0 {
		t.Errorf("%v with %d bytes are left", states, bytes)
	}
}

// calibratesOn calibrates the stored model m on a hostile data set. One that is no zip, too
// large or without image files must be rejected as by /train with the answer a. Most others
// have too few files, whether they can be read or not.
func (s *service) calibratesOn(t *testing.T, d hostile.Dataset, a answer) {
	t.Helper()
	got := s.post(t, "/models/m/calibrate", file("zipFile", "z", d.Data))
	tooFew := got.status == 422 && strings.HasPrefix(got.message(t), "Too few normal images")
	alike := got.status == a.status && a.status != 200 && got.message(t) == a.message(t)
	right := alike
	switch d.Want {
	case hostile.NoImages:
		right = alike || tooFew
	case hostile.Trains:
		right = tooFew || got.status == 200
	}
	if !right {
		t.Errorf("a calibration: status %d: %.300s; /train: %d: %.300s", got.status, got.body, a.status, a.body)
	}
}

// folderBytes returns the size of all files in a folder, which may change meanwhile.
func folderBytes(t *testing.T, dir string) (total int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				total += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return total
}
