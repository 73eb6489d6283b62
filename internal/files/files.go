// Package files writes files atomically, reads them with a limit, opens regular files
// without blocking, and locks them. It must import no other package of the module.
package files

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// TemporaryPrefix is the prefix of WriteAtomic's temporary files.
const TemporaryPrefix = ".anomaly-"

// ErrLocked is returned when another process holds a lock.
var ErrLocked = errors.New("locked by another process")

// WriteAtomic writes a file of mode 0644 and creates its folders. It writes to a
// temporary file in the same folder, syncs it, and renames it to path: readers find the
// old or the new file, also after a crash. It returns the error of write or of the
// file system.
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

// ignoreClosed returns err unless the file was already closed.
func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// SyncDir syncs a folder, so that new names of its files survive a crash.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReadAtMost returns the content of a file, or its first limit+1 bytes if the file is
// larger than limit. The caller must check the length.
func ReadAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}
