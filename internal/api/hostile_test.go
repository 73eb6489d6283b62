package api

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/hostile"
)

// mostGrowth is how much memory a service may take for files that mean harm,
// one after another: most of it to write a model anew, whose ONNX files hold the
// backbone each. The race detector remembers who touched which memory, in several
// times as much.
const mostGrowth = raceFactor * (300 << 20)

func TestHostileModelFilesAreRefusedAndTouchNothing(t *testing.T) {
	s := start(t, nil)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	canary := filepath.Join(temp, "canary")
	image := file("imageFile", "i", read(t, tileFiles(t, "test/good", 1)[0]))
	files := hostile.Models(canary)
	if len(files) < 60 {
		t.Errorf("only %d files", len(files))
	}
	// What earlier tests took at most does not count.
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
			s.toldInOneSentence(t, a)
			if n := s.uploads(t); n != 0 {
				t.Errorf("%d uploads are left", n)
			}
			if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
				t.Errorf("the file left %v, %v", left, err)
			}
		})
	}
	if after := memory(t, "VmHWM"); measured && after > before+mostGrowth {
		t.Errorf("the service grew from %d to %d bytes", before, after)
	}
	a := s.post(t, "/detect", file("modelFile", "m", trained(t)["autoencoder.pt"]), image)
	if a.status != 200 {
		t.Errorf("afterwards a good model is answered %d: %s", a.status, a.body)
	}
}

// memory is a figure of /proc/self/status in bytes, 0 where there is none.
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
