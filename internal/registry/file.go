package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/deepmed/anomaly/models"
)

// lockDir keeps other processes out of a folder for as long as the file is open;
// it is closed with the process, however that ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
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

// write makes a file that is there as a whole or not at all, even when the
// machine stops.
func (r *Registry) write(file string, data []byte) (err error) {
	f, err := os.CreateTemp(r.dir, temporary+"*")
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("registry: %w", err)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(r.dir, file)); err != nil {
		return err
	}
	// It is there for all to see; that its name is not safe yet changes nothing
	// for them.
	if err := r.sync(); err != nil {
		r.log.Warn("a stop of the machine may lose this model", slog.String("file", file), slog.Any("error", err))
	}
	return nil
}

// sync brings the folder's names to the disk.
func (r *Registry) sync() error {
	d, err := os.Open(r.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
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
	if err := r.sync(); err != nil {
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

// bytes reads a file, and one byte more than the limit of one that is larger:
// enough for models.Read to say so.
func (r *Registry) bytes(file string) ([]byte, error) {
	f, err := os.Open(filepath.Join(r.dir, file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, r.limits.MaxBytes+1))
}
