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
)

// tempPrefix begins the names of the folders that servers keep uploads in, and
// tempFiles those of the files in them.
const tempPrefix = "anomaly-serve-"

var tempFiles = []string{"upload-", "dataset-"}

// tempDir is a server's own folder for uploads. It is locked as long as the
// process lives, however that ends: so the next server sees whose folder is left
// over, whatever the clock and the process ids say.
type tempDir struct {
	path string
	// Close removes the folder and lets go of its lock.
	Close func() error
}

// newTempDir removes what dead servers left in parent, the system's folder for
// temporary files when empty, and makes a fresh folder there.
func newTempDir(parent string, log *slog.Logger) (*tempDir, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	if n := sweep(parent); n > 0 {
		log.Warn("removed what a server that was killed had left", slog.String("folder", parent), slog.Int("uploads_of", n))
	}
	for {
		path, err := os.MkdirTemp(parent, tempPrefix)
		if err != nil {
			return nil, err
		}
		lock, err := lockFolder(path)
		if err == nil {
			return &tempDir{path, sync.OnceValue(func() error {
				return errors.Join(os.RemoveAll(path), lock.Close())
			})}, nil
		}
		if !errors.Is(err, errSwept) {
			return nil, errors.Join(err, os.Remove(path))
		}
	}
}

// errSwept says that another server took a new folder for a dead one's, in the
// moment before it was locked.
var errSwept = errors.New("api: the folder for uploads was taken away")

// lockFolder locks a folder without waiting.
func lockFolder(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errSwept
	}
	if err != nil {
		return nil, err
	}
	if err := files.TryLock(f); err != nil {
		f.Close()
		if errors.Is(err, files.ErrLocked) {
			return nil, errSwept
		}
		return nil, err
	}
	locked, err := f.Stat()
	if there, thereErr := os.Lstat(path); err != nil || thereErr != nil || !os.SameFile(locked, there) {
		f.Close()
		return nil, errSwept
	}
	return f, nil
}

// sweep removes the folders of dead servers and says how many there were. One
// that a server holds, that is another user's, or that holds anything but
// uploads stays as it is.
func sweep(parent string) int {
	list, _ := filepath.Glob(filepath.Join(parent, tempPrefix+"*"))
	n := 0
	for _, path := range list {
		lock, err := lockFolder(path)
		if err != nil {
			continue
		}
		if removeUploads(path, lock) {
			n++
		}
		lock.Close()
	}
	return n
}

func removeUploads(path string, dir *os.File) bool {
	info, err := dir.Stat()
	if err != nil {
		return false
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Geteuid() {
		return false
	}
	entries, err := dir.ReadDir(-1)
	if err != nil || slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !e.Type().IsRegular() || !ours(e.Name()) }) {
		return false
	}
	for _, e := range entries {
		if os.Remove(filepath.Join(path, e.Name())) != nil {
			return false
		}
	}
	return os.Remove(path) == nil
}

func ours(name string) bool {
	return slices.ContainsFunc(tempFiles, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}
