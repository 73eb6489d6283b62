// Package files writes files whole or not at all, reads them with a limit, and locks
// them. It may import nothing of ours.
package files

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// TemporaryPrefix begins the names of files that WriteAtomic has not finished.
const TemporaryPrefix = ".anomaly-"

// ErrLocked is returned when another process holds a lock.
var ErrLocked = errors.New("locked by another process")

// WriteAtomic writes a file of mode 0644, and the folders it lies in, by way of a temporary file in the same
// folder, which it syncs and then renames to path. A reader, and a machine that stops
// at any moment, finds the old file or the new one.
func WriteAtomic(path string, write func(io.Writer) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), TemporaryPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreClosed(tmp.Close()), os.Remove(tmp.Name()))
		}
	}()
	if err := write(tmp); err != nil {
		return err
	}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// SyncDir makes the names of the files in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReadAtMost returns the content of a file, or its first limit+1 bytes if it is
// larger: the caller, who knows what the limit is for, reports that.
func ReadAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}
