package evaluation

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
)

// The file has 3 GB and takes no room on the disk.
func TestReadMask_DoesNotReadHugeFilesWhole(t *testing.T) {
	file := filepath.Join(t.TempDir(), "huge.tif")
	if err := os.WriteFile(file, []byte("II*\x00\x08\x00\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 3<<30); err != nil {
		t.Skip(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := readMask(file, 8, 8, imagefile.Options{})
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrMask) || !errors.Is(err, imagefile.ErrTooLarge) {
		t.Errorf("%v, expected ErrTooLarge", err)
	}
	// io.ReadAll grows its buffer by a quarter at a time, so it allocates about six
	// times the limit in all.
	if n := after.TotalAlloc - before.TotalAlloc; n > 8*uint64(imagefile.DefaultLimits().MaxBytes) {
		t.Errorf("allocated %d bytes", n)
	}
}
