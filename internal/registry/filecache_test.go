package registry

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/deepmed/anomaly/models"
)

func TestFileCache_NeverExceedsItsBytes(t *testing.T) {
	dir := t.TempDir()
	const limit = 1000
	c, err := openFileCache(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	inFolder := func() (total int64) {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			info, err := f.Info()
			if err == nil {
				total += info.Size()
			}
		}
		return total
	}
	file := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 300) }
	stop, most := make(chan struct{}), make(chan int64)
	go func() {
		var top int64
		for {
			select {
			case <-stop:
				most <- top
				return
			default:
				top = max(top, inFolder())
			}
		}
	}()
	for i := range 50 {
		data := file(i % 7)
		if err := c.put(models.Identity(data), data); err != nil {
			t.Fatal(err)
		}
		if got := c.get(models.Identity(data)); !bytes.Equal(got, data) {
			t.Fatalf("%d bytes", len(got))
		}
	}
	close(stop)
	if top := <-most; top > limit || top < 900 {
		t.Errorf("%d bytes in the folder", top)
	}
	large := make([]byte, limit+1)
	if err := c.put(models.Identity(large), large); err != nil || c.get(models.Identity(large)) != nil || inFolder() != 900 {
		t.Errorf("a file above the limit: %v, %d bytes", err, inFolder())
	}
	// The one that was used last stays.
	kept := file(0)
	_ = c.put(models.Identity(kept), kept)
	for i := 10; i < 16; i++ {
		c.get(models.Identity(kept))
		_ = c.put(models.Identity(file(i)), file(i))
	}
	if c.get(models.Identity(kept)) == nil {
		t.Error("the file that was used last was removed")
	}
	if _, err := openFileCache(dir, limit); !errors.Is(err, ErrInUse) {
		t.Errorf("a folder in use: %v", err)
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "other"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := openFileCache(dir, 500)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if again.bytes != 300 || again.get(again.used[0].sha256) == nil {
		t.Errorf("opened again: %d bytes", again.bytes)
	}
	if _, err := os.Stat(filepath.Join(dir, "other")); err != nil {
		t.Errorf("a file that is not the cache's: %v", err)
	}
}
