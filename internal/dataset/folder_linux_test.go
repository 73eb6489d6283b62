package dataset

import (
	"image/color"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

func TestOpenFolder_SkipsAndNamesUnreadableFolders(t *testing.T) {
	dir := folderOf(t, map[string][]byte{"a.png": dot(t, color.White), "lost+found/b.png": nil})
	closed := filepath.Join(dir, "lost+found")
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(closed, 0o755) })
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		// Root may read everything; another file system user may not. The thread ends with
		// the test because it stays locked.
		runtime.LockOSThread()
		if err := syscall.Setfsuid(65534); err != nil {
			t.Skip(err)
		}
	}
	src, err := OpenFolder(dir, DefaultLimits())
	if os.Getuid() == 0 {
		_ = syscall.Setfsuid(0)
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := Load(t.Context(), src, at16)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Len() != 1 || len(d.Skipped) != 1 || d.Skipped[0].Name != "lost+found" || !strings.Contains(d.Skipped[0].Reason, "permission denied") {
		t.Errorf("%d images, skipped %v", d.Len(), d.Skipped)
	}
}
