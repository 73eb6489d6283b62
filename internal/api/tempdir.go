package api

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/jobs"
)

// tempPrefix is the prefix of the names of servers' upload folders, and tempFiles are
// the prefixes of the files in them. jobsPrefix is the prefix of temporary folders of
// jobs, and jobsStore the name of the only folder in them.
const (
	tempPrefix = "anomaly-serve-"
	jobsPrefix = "anomaly-jobs-"
	jobsStore  = "store"
)

var tempFiles = []string{"upload-", "dataset-"}

// tempDir is the folder of a server's uploads. The server holds a lock on it, which the
// operating system releases when the process ends in any way. Another server can remove
// a folder that is not locked; it needs neither times nor process ids to recognize one.
type tempDir struct {
	path string
	// Close removes the folder and releases its lock.
	Close func() error
}

// newTempDir creates a folder for uploads in parent, after removing those that killed
// servers left there. An empty parent means the system's folder for temporary files.
func newTempDir(parent string, log *slog.Logger) (*tempDir, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	if n := removeStale(parent); n > 0 {
		log.Warn("removed temporary folders of a server that was killed", slog.String("folder", parent), slog.Int("removed", n))
	}
	return lockedTempDir(parent, tempPrefix)
}

// lockedTempDir creates a folder in parent and locks it.
func lockedTempDir(parent, prefix string) (*tempDir, error) {
	for {
		path, err := os.MkdirTemp(parent, prefix)
		if err != nil {
			return nil, err
		}
		lock, err := lockFolder(path)
		if err == nil {
			return &tempDir{path, sync.OnceValue(func() error {
				return errors.Join(os.RemoveAll(path), lock.Close())
			})}, nil
		}
		if !errors.Is(err, errRemoved) {
			return nil, errors.Join(err, os.Remove(path))
		}
	}
}

// errRemoved is returned by lockFolder if another server removed the folder, or is about
// to: between its creation and its locking, a folder looks stale.
var errRemoved = errors.New("api: the folder for uploads was removed")

// lockFolder locks a folder without waiting. Closing the file releases the lock.
func lockFolder(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errRemoved
	}
	if err != nil {
		return nil, err
	}
	if err := files.TryLock(f); err != nil {
		f.Close()
		if errors.Is(err, files.ErrLocked) {
			return nil, errRemoved
		}
		return nil, err
	}
	locked, err := f.Stat()
	if there, thereErr := os.Lstat(path); err != nil || thereErr != nil || !os.SameFile(locked, there) {
		f.Close()
		return nil, errRemoved
	}
	return f, nil
}

// removeStale removes the folders of killed servers in parent and returns their number.
// It leaves a folder alone if a server holds its lock, if it is another user's, or if it
// contains anything but uploads or jobs.
func removeStale(parent string) int {
	n := 0
	for prefix, remove := range map[string]func(string, *os.File) bool{tempPrefix: removeUploads, jobsPrefix: removeJobs} {
		list, _ := filepath.Glob(filepath.Join(parent, prefix+"*"))
		for _, path := range list {
			lock, err := lockFolder(path)
			if err != nil {
				continue
			}
			if remove(path, lock) {
				n++
			}
			lock.Close()
		}
	}
	return n
}

// ownFolder reports whether a folder belongs to the user of the process.
func ownFolder(dir *os.File) bool {
	info, err := dir.Stat()
	if err != nil {
		return false
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(owner.Uid) == os.Geteuid()
}

// removeJobs removes a locked temporary folder of jobs. It reports whether it did.
func removeJobs(path string, dir *os.File) bool {
	if !ownFolder(dir) {
		return false
	}
	entries, err := dir.ReadDir(-1)
	if err != nil || slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !e.IsDir() || e.Name() != jobsStore }) {
		return false
	}
	if len(entries) > 0 && !jobs.IsStore(filepath.Join(path, jobsStore)) {
		return false
	}
	return os.RemoveAll(path) == nil
}

// removeUploads removes a locked folder and the uploads in it. It reports whether it
// did.
func removeUploads(path string, dir *os.File) bool {
	if !ownFolder(dir) {
		return false
	}
	entries, err := dir.ReadDir(-1)
	if err != nil || slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !e.Type().IsRegular() || !isUpload(e.Name()) }) {
		return false
	}
	for _, e := range entries {
		if os.Remove(filepath.Join(path, e.Name())) != nil {
			return false
		}
	}
	return os.Remove(path) == nil
}

// isUpload reports whether a file name is one that servers give to uploads.
func isUpload(name string) bool {
	return slices.ContainsFunc(tempFiles, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}
