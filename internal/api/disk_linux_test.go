package api

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/models"
)

func TestStoredModels_LeaveSpaceForTheStoreOfJobs(t *testing.T) {
	data := t.TempDir()
	if err := syscall.Mount("none", data, "tmpfs", 0, "size=120m"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(data, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(filepath.Join(data, "temp"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := start(t, func(o *Options) {
		o.DataDir, o.ModelsDir, o.TempDir = data, filepath.Join(data, "models"), filepath.Join(data, "temp")
	})
	model := trained(t)[models.CheckpointFile]
	s.mustPut(t, "m", model)
	filler, err := os.Create(filepath.Join(data, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	free, err := files.FreeSpace(data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := filler.Write(make([]byte, free-jobs.SpareDisk)); err != nil {
		t.Fatal(err)
	}
	if a := s.put(t, "other", model); a.status != 503 || a.message(t) != errNoSpace.message {
		t.Errorf("a model: status %d: %s", a.status, a.body)
	}
	if a := s.sendFeedback(t, "normal", "a.jpg", tile(t, testGood)); a.status != 503 || a.message(t) != errNoSpace.message {
		t.Errorf("feedback: status %d: %s", a.status, a.body)
	}
	if a := s.post(t, "/train", file("zipFile", "a.zip", make([]byte, 3<<20))); a.status != 503 || a.message(t) != errNoSpace.message {
		t.Errorf("an upload: status %d: %s", a.status, a.body)
	}
	if err := filler.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if a := s.put(t, "other", model); a.status != 201 {
		t.Errorf("a model with space left: status %d: %s", a.status, a.body)
	}
	if a := s.sendFeedback(t, "normal", "a.jpg", tile(t, testGood)); a.status != 201 {
		t.Errorf("feedback with space left: status %d: %s", a.status, a.body)
	}
}
