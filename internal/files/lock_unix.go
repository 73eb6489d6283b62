//go:build unix

package files

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// TryLock locks an open file or folder without waiting. The lock ends when the file
// is closed, at the latest with the process. It returns ErrLocked when another
// process holds a lock.
func TryLock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrLocked
	}
	if err != nil {
		return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	return nil
}

// FreeSpace returns the bytes that are left on the disk of a folder.
func FreeSpace(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}

// SameDisk reports whether two folders are on the same disk.
func SameDisk(a, b string) (bool, error) {
	var sa, sb syscall.Stat_t
	for path, s := range map[string]*syscall.Stat_t{a: &sa, b: &sb} {
		if err := syscall.Stat(path, s); err != nil {
			return false, &fs.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	return sa.Dev == sb.Dev, nil
}
