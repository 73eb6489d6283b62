package feedback

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestStore_KeepsNothingOfAnImageWithoutARecord(t *testing.T) {
	dir := t.TempDir()
	const size = 16 << 10
	if err := syscall.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	s := NewFolders(Limits{Images: 10, Bytes: 1 << 20}, asPath)
	// The image takes the whole disk; its record has no place.
	if _, err := s.Add(t.Context(), dir, Record{Label: Normal}, make([]byte, size)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v", err)
	}
	if files, err := os.ReadDir(filepath.Join(dir, imagesDir)); err != nil || len(files) > 0 {
		t.Errorf("%v, %v", files, err)
	}
	if _, err := s.Add(t.Context(), dir, Record{Label: Normal}, []byte("image")); err != nil {
		t.Errorf("with space left: %v", err)
	}
}
