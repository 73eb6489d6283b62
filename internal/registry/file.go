package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/models"
)

// lockDir locks a folder against other processes. The lock is released when the file is
// closed, at the latest when the process ends. It returns ErrInUse, wrapped, when
// another process has the lock.
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

// Put stores a model, which was read from data, as a new version under a name. replaced
// reports whether it replaced another model, which is kept as an earlier version. A model
// with the same bytes as the current one changes nothing. On success the model is durable;
// on an error nothing has changed. It returns ErrName, ErrFull and ErrChanged, wrapped.
func (r *Folder) Put(_ context.Context, name string, m *models.Model, data []byte, change Change) (e Entry, replaced bool, err error) {
	if err := CheckName(name); err != nil {
		return Entry{}, false, err
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	var before Entry
	r.mu.Lock()
	rec, replaced := r.records[name]
	if replaced {
		before = rec.entry
	}
	full := !replaced && len(r.records) >= r.options.MaxModels
	r.mu.Unlock()
	switch {
	case change.Of != "" && before.SHA256 != change.Of:
		return Entry{}, replaced, fmt.Errorf("%w: %s has another version now", ErrChanged, name)
	case full:
		return Entry{}, false, fmt.Errorf("%w: %d are stored, delete one first", ErrFull, r.options.MaxModels)
	}
	if before.State == Ready && before.SHA256 == m.SHA256 && change.Of == "" && r.unchanged(before) {
		return before, true, nil
	}
	now := time.Now().UTC()
	v := storedVersion{Version: Version{SHA256: m.SHA256, CreatedAt: now, Reason: change.Reason}, Scores: m.SHA256, Since: now, Bytes: int64(len(data))}
	_, v.Threshold = m.Metadata.Measure()
	// The history is written first: a version without its file is not listed, while a
	// file without its version would have no reason.
	kept, err := r.keep(before, name)
	if err != nil {
		return Entry{}, replaced, err
	}
	if i := slices.IndexFunc(kept, func(v storedVersion) bool { return v.SHA256 == before.SHA256 }); i >= 0 && change.SameScores {
		v.Scores, v.Since = kept[i].Scores, kept[i].Since
	} else if i := slices.IndexFunc(kept, func(old storedVersion) bool { return old.SHA256 == v.SHA256 }); i >= 0 {
		v.Scores = kept[i].Scores
	}
	if kept, err = r.recordVersion(name, v, kept); err != nil {
		return Entry{}, replaced, err
	}
	file := name + storedEnding
	if err := r.write(file, data); err != nil {
		return Entry{}, replaced, err
	}
	// The new file has priority over these; see storedEnding.
	for _, ending := range userEndings {
		if err := os.Remove(filepath.Join(r.dir, name+ending)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.log.Warn("cannot remove the file of a replaced model", slog.String("file", name+ending), slog.Any("error", err))
		}
	}
	r.prune(name, kept)
	e = Entry{Key: name, Name: name, Modified: now, file: file}
	e.describe(m, int64(len(data)))
	rec = &record{entry: e, read: make(chan struct{})}
	close(rec.read)
	r.mu.Lock()
	r.records[name] = rec
	r.mu.Unlock()
	return e, replaced, nil
}

// unchanged reports whether the file of an entry has the entry's bytes.
func (r *Folder) unchanged(e Entry) bool {
	data, err := r.bytes(e.file)
	return err == nil && models.Identity(data) == e.SHA256
}

// write writes a file atomically.
func (r *Folder) write(file string, data []byte) error {
	err := files.WriteAtomic(filepath.Join(r.dir, file), func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	// Readers can already open the file, so a name that is not yet durable is only
	// worth a warning.
	if err := files.SyncDir(r.dir); err != nil {
		r.log.Warn("this model may be lost if the machine stops", slog.String("file", file), slog.Any("error", err))
	}
	return nil
}

// Delete removes a model, its versions and its folder. Bytes that were read before remain
// usable. It returns ErrName and ErrUnknown, wrapped.
func (r *Folder) Delete(_ context.Context, name string) error {
	r.deleting.Lock()
	defer r.deleting.Unlock()
	r.writing.Lock()
	defer r.writing.Unlock()
	if _, err := r.record(name); err != nil {
		return err
	}
	if err := r.deleteHistory(name); err != nil {
		return err
	}
	// Remove the file with the highest priority last. Otherwise a file that it replaced
	// would be used at the next start if the process ended in between.
	for _, ending := range append(append([]string{}, userEndings...), storedEnding) {
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

// Bytes returns the file of an entry. It returns ErrChanged, wrapped, when the file has
// been replaced or removed.
func (r *Folder) Bytes(_ context.Context, e Entry) ([]byte, error) {
	data, err := r.bytes(e.file)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && models.Identity(data) != e.SHA256) {
		// Put and Delete change the file first and the entry later, before they release
		// the lock. Wait, so that the caller finds the new entry.
		r.writing.Lock()
		defer r.writing.Unlock()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: the file of %s is gone", ErrChanged, e.Name)
	case err != nil:
		return nil, err
	case models.Identity(data) != e.SHA256:
		return nil, fmt.Errorf("%w: the file of %s contains another model", ErrChanged, e.Name)
	}
	return data, nil
}

// bytes returns the content of a file, truncated to one byte more than the limit, which
// models.Read then rejects as too large.
func (r *Folder) bytes(file string) ([]byte, error) {
	return files.ReadAtMost(filepath.Join(r.dir, file), r.limits.MaxBytes)
}
