package evaluation

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/png"
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

func TestReadMask_AppliesTheOrientationAndReadsDeepMasks(t *testing.T) {
	const upright = "../../testdata/golden/images/upright.png" // stored as 23×14 pixels
	if _, err := readMask(upright, 14, 23, imagefile.Options{Upright: true}); err != nil {
		t.Error(err)
	}
	if _, err := readMask(upright, 23, 14, imagefile.Options{}); err != nil {
		t.Error(err)
	}
	deep := image.NewGray16(image.Rect(0, 0, 4, 4))
	deep.SetGray16(1, 2, color.Gray16{Y: 1})
	var b bytes.Buffer
	if err := png.Encode(&b, deep); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "mask.png")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := readMask(file, 4, 4, imagefile.Options{}); err != nil || len(m.sizes) != 1 || m.sizes[0] != 1 {
		t.Errorf("%+v, %v, expected one defective pixel", m, err)
	}
}
