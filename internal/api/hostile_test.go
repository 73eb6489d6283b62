package api

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/hostile"
)

// maxGrowth bounds the memory that a service takes for hostile files, one after another,
// in bytes. Most of it is for writing calibrated models, whose ONNX files contain the
// backbone.
const maxGrowth = raceFactor * (300 << 20)

func TestDetect_RejectsHostileModels(t *testing.T) {
	s := start(t, nil)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	canary := filepath.Join(temp, "canary")
	image := imagePart(t)
	files := hostile.Models(canary)
	if len(files) < 60 {
		t.Errorf("only %d files", len(files))
	}
	// Reset the peak that earlier tests reached.
	measured := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) == nil
	before := memory(t, "VmRSS")
	for _, f := range files {
		t.Run(string(f.Class)+"/"+f.Name, func(t *testing.T) {
			a := s.post(t, "/detect", file("modelFile", "m", f.Data), image)
			want := 422
			if f.Want == hostile.TooLarge {
				want = 413
			}
			if a.status != want {
				t.Errorf("status %d: %s; expected %d", a.status, a.body, want)
			}
			s.isOneSentence(t, a)
			s.keepsNoUpload(t)
			if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
				t.Errorf("files left: %v, %v", left, err)
			}
		})
	}
	if after := memory(t, "VmHWM"); measured && after > before+maxGrowth {
		t.Errorf("the service grew from %d to %d bytes", before, after)
	}
	a := s.post(t, "/detect", modelPart(t), image)
	if a.status != 200 {
		t.Errorf("a good model afterwards: status %d: %s", a.status, a.body)
	}
}

// memory returns a value of /proc/self/status in bytes, or 0 if the system has no such
// file.
func memory(t *testing.T, name string) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("/proc/self/status has no %s", name)
	return 0
}
