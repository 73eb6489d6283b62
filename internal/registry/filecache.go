package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/models"
)

// fileCache is a folder with copies of model files, named by their SHA-256, of at most limit
// bytes together. Those that were not used for the longest time are removed first. Its files may
// be damaged or removed at any time: they are verified when they are read.
type fileCache struct {
	dir   string
	limit int64
	lock  *os.File

	mu    sync.Mutex
	bytes int64         // of all entries, also of those that are being written
	used  []cachedModel // the least recently used first
}

type cachedModel struct {
	sha256 string
	bytes  int64
}

// openFileCache opens a folder, which it creates if necessary. It returns ErrInUse, wrapped,
// when another process has the folder open.
func openFileCache(dir string, limit int64) (*fileCache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	c := &fileCache{dir: dir, limit: limit, lock: lock}
	if err := c.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("registry: %w", err), c.close())
	}
	return c, nil
}

// scan finds the files of an earlier process, the oldest first.
func (c *fileCache) scan() error {
	if err := removeTemporary(c.dir); err != nil {
		return err
	}
	list, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	var found []fs.FileInfo
	for _, f := range list {
		info, err := f.Info()
		if err == nil && info.Mode().IsRegular() && validSHA256.MatchString(f.Name()) {
			found = append(found, info)
		}
	}
	slices.SortFunc(found, func(a, b fs.FileInfo) int {
		return a.ModTime().Compare(b.ModTime())
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, info := range found {
		c.used = append(c.used, cachedModel{info.Name(), info.Size()})
		c.bytes += info.Size()
	}
	c.evict(0)
	return nil
}

func (c *fileCache) path(sha256 string) string { return filepath.Join(c.dir, sha256) }

// evict removes files until n bytes more are within the limit. The caller has the lock mu.
func (c *fileCache) evict(n int64) {
	for len(c.used) > 0 && c.bytes+n > c.limit {
		c.drop(0)
	}
}

// drop removes a file. The caller has the lock mu.
func (c *fileCache) drop(i int) {
	f := c.used[i]
	c.used = slices.Delete(c.used, i, i+1)
	c.bytes -= f.bytes
	_ = os.Remove(c.path(f.sha256)) // scan finds it again
}

func (c *fileCache) index(sha256 string) int {
	return slices.IndexFunc(c.used, func(f cachedModel) bool { return f.sha256 == sha256 })
}

// get returns the file with the SHA-256, or nil if it is not in the cache. It removes a
// damaged one.
func (c *fileCache) get(sha256 string) []byte {
	c.mu.Lock()
	i := c.index(sha256)
	if i < 0 {
		c.mu.Unlock()
		return nil
	}
	f := c.used[i]
	c.used = append(slices.Delete(c.used, i, i+1), f)
	c.mu.Unlock()
	data, err := files.ReadAtMost(c.path(sha256), f.bytes)
	if err == nil && models.Identity(data) == sha256 {
		return data
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := c.index(sha256); i >= 0 {
		c.drop(i)
	}
	return nil
}

// put stores a file, unless it is larger than the limit. A file that cannot be written is not
// in the cache.
func (c *fileCache) put(sha256 string, data []byte) error {
	size := int64(len(data))
	c.mu.Lock()
	defer c.mu.Unlock()
	if size > c.limit || c.index(sha256) >= 0 {
		return nil
	}
	c.evict(size)
	// With the lock, so that no file that is being written is beyond the limit.
	err := files.WriteAtomic(c.path(sha256), func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	c.used = append(c.used, cachedModel{sha256, size})
	c.bytes += size
	return nil
}

func (c *fileCache) close() error {
	if err := c.lock.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
