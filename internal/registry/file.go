package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/models"
)

// lockDir keeps other processes out of a folder for as long as the file is open;
// it is closed with the process, however that ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if err := files.TryLock(f); err != nil {
		f.Close()
		if errors.Is(err, files.ErrLocked) {
			return nil, fmt.Errorf("%w: %s", ErrInUse, dir)
		}
		return nil, fmt.Errorf("registry: locking %s: %w", dir, err)
	}
	return f, nil
}

// Put keeps a model, which was read from data, under a name, in place of the one
// that had it; replaced says whether there was one. When it returns without an
// error the model is on the disk; with one, nothing has changed. It returns
// ErrName and ErrFull, wrapped.
func (r *Registry) Put(name string, m *models.Model, data []byte) (e Entry, replaced bool, err error) {
	if err := CheckName(name); err != nil {
		return Entry{}, false, err
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	_, replaced = r.records[name]
	full := !replaced && len(r.records) >= r.most
	r.mu.Unlock()
	if full {
		return Entry{}, false, fmt.Errorf("%w: %d are kept, delete one first", ErrFull, r.most)
	}
	file := name + storedEnding
	if err := r.write(file, data); err != nil {
		return Entry{}, false, err
	}
	// The new file counts before these already.
	for _, ending := range handEndings {
		if err := os.Remove(filepath.Join(r.dir, name+ending)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.log.Warn("a replaced model's file stays", slog.String("file", name+ending), slog.Any("error", err))
		}
	}
	e = Entry{Name: name, Modified: time.Now().UTC(), file: file}
	e.describe(m, int64(len(data)))
	rec := &record{entry: e, read: make(chan struct{})}
	close(rec.read)
	r.mu.Lock()
	r.records[name] = rec
	r.mu.Unlock()
	return e, replaced, nil
}

// write writes a file whole or not at all, also when the machine stops.
func (r *Registry) write(file string, data []byte) error {
	err := files.WriteAtomic(filepath.Join(r.dir, file), func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	// The file can be read by now; that its name is not durable yet changes nothing
	// for readers.
	if err := files.SyncDir(r.dir); err != nil {
		r.log.Warn("a stop of the machine may lose this model", slog.String("file", file), slog.Any("error", err))
	}
	return nil
}

// Delete removes a model. Who has its bytes may go on. It returns ErrName and
// ErrUnknown, wrapped.
func (r *Registry) Delete(name string) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	if _, err := r.record(name); err != nil {
		return err
	}
	// The file that counts goes last: otherwise one that it replaced would
	// come back at the next start, were this to end in between.
	for _, ending := range append(append([]string{}, handEndings...), storedEnding) {
		if err := os.Remove(filepath.Join(r.dir, name+ending)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("registry: %w", err)
		}
	}
	r.mu.Lock()
	delete(r.records, name)
	r.mu.Unlock()
	if err := files.SyncDir(r.dir); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

// Bytes reads the file of an entry. It returns ErrChanged, wrapped, when that is
// another by now.
func (r *Registry) Bytes(e Entry) ([]byte, error) {
	data, err := r.bytes(e.file)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && models.Identity(data) != e.SHA256) {
		// Who changes it has changed the file first: the entry comes with the
		// lock's release.
		r.writing.Lock()
		defer r.writing.Unlock()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: the file of %s is gone", ErrChanged, e.Name)
	case err != nil:
		return nil, err
	case models.Identity(data) != e.SHA256:
		return nil, fmt.Errorf("%w: the file of %s holds another model", ErrChanged, e.Name)
	}
	return data, nil
}

// bytes returns a file's content, or one byte more than the limit of a larger one,
// which models.Read then refuses.
func (r *Registry) bytes(file string) ([]byte, error) {
	return files.ReadAtMost(filepath.Join(r.dir, file), r.limits.MaxBytes)
}
