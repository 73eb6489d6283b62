package api

import (
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/hostile"
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
	s := start(t, func(o *Options) { o.Dataset.Entries, o.Dataset.UnpackedBytes = 100, 64<<20 })
	canary := filepath.Join(t.TempDir(), "canary")
	sets := hostile.Datasets(canary)
	if len(sets) < 30 {
		t.Errorf("only %d data sets", len(sets))
	}
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
			for _, path := range []string{canary, canary + ".png"} {
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("%s was made", path)
				}
			}
			after(t)
		})
	}
}
