package dataset

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

func TestDataset_IsIdenticalInMemoryAndOnDisk(t *testing.T) {
	o := Options{Size: models.Square(32), Limits: DefaultLimits(), Images: imageLimits}
	all, err := Load(t.Context(), zipSource(t, testkit.Tiles(t, 18)), o)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	want := images(t, all)
	const size = 32 * 32 * 3
	for _, memory := range []int64{0, size - 1, size, 10 * size, int64(len(want)) * size} {
		o.Limits.MemoryBytes, o.TempDir = memory, t.TempDir()
		d, err := Load(t.Context(), zipSource(t, testkit.Tiles(t, 18)), o)
		if err != nil {
			t.Fatal(err)
		}
		if held := len(d.pixels.memory); int64(held)*size > memory || (d.pixels.file != nil) != (held < len(want)) {
			t.Errorf("%d bytes of memory contain %d images, file %v", memory, held, d.pixels.file)
		}
		if !slices.EqualFunc(images(t, d), want, bytes.Equal) {
			t.Errorf("with %d bytes of memory the images differ", memory)
		}
		if left, err := os.ReadDir(o.TempDir); err != nil || len(left) != 0 {
			t.Errorf("files in the folder while the data set is open: %v %v", left, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestLoad_ReturnsErrStorageWhenTheDiskIsFull(t *testing.T) {
	o := at16
	o.Limits.MemoryBytes, o.TempDir = 0, filepath.Join(t.TempDir(), "nothing")
	if _, err := Load(t.Context(), tileFolder(t), o); !errors.Is(err, ErrStorage) {
		t.Errorf("%v", err)
	}
	// Writes to /dev/full fail as on a full disk.
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no /dev/full: ", err)
	}
	p := &pixels{size: 4096, file: full}
	defer p.Close()
	if err := p.put(0, make([]byte, 4096)); !errors.Is(err, ErrStorage) {
		t.Errorf("full disk: %v", err)
	}
}
