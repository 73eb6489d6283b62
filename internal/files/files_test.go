package files

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteAtomic_ReplacesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	for _, content := range []string{"first", "second"} {
		if err := WriteAtomic(path, func(w io.Writer) error { _, err := io.WriteString(w, content); return err }); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("%q, %v", got, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestWriteAtomic_LeavesTheOldFileOnError(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	err := WriteAtomic(path, func(w io.Writer) error { _, _ = io.WriteString(w, "new"); return broken })
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "old" {
		t.Errorf("%q", got)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("temporary files remain: %v", list)
	}
}

func TestReadAtMost_ReturnsOneByteMoreThanTheLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int64]string{3: "1234", 5: "12345", 9: "12345"} {
		if got, err := ReadAtMost(path, limit); err != nil || string(got) != want {
			t.Errorf("limit %d: %q, %v", limit, got, err)
		}
	}
}

func TestTryLock_RefusesASecondHolder(t *testing.T) {
	dir := t.TempDir() // folders can be locked too
	first, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := TryLock(first); err != nil {
		t.Fatal(err)
	}
	if err := TryLock(second); !errors.Is(err, ErrLocked) {
		t.Error(err)
	}
	first.Close()
	if err := TryLock(second); err != nil {
		t.Error(err)
	}
}
