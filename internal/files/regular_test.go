package files

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestOpenRegular_RefusesWhatMayBlock(t *testing.T) {
	dir := t.TempDir()
	file, link, pipe, socket := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe"), filepath.Join(dir, "s")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, p := range []string{file, link} {
		f, err := OpenRegular(p)
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		if data, err := io.ReadAll(f); err != nil || string(data) != "x" {
			t.Errorf("%s: %q, %v", p, data, err)
		}
		f.Close()
	}
	for _, p := range []string{pipe, socket, dir, os.DevNull} {
		if _, err := OpenRegular(p); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: %v", p, err)
		}
	}
	if _, err := OpenRegular(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
