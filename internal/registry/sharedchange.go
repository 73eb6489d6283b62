package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/models"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// read returns the record of a model from the cluster and its revision, which is 0 if there is
// no record.
func (r *Shared) read(ctx context.Context, name string) (rec sharedRecord, revision uint64, err error) {
	e, err := r.b.Get(ctx, r.kv, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return rec, 0, nil
	}
	if err != nil {
		return rec, 0, fmt.Errorf("registry: %w", err)
	}
	r.learn(name, e.Value(), e.Revision())
	if err := json.Unmarshal(e.Value(), &rec); err != nil {
		return sharedRecord{}, e.Revision(), nil // learn has logged it; the next version replaces it
	}
	return rec, e.Revision(), nil
}

// current returns the current version, which is the zero version if there is none.
func (rec *sharedRecord) current() sharedVersion {
	if len(rec.Versions) == 0 {
		return sharedVersion{}
	}
	return rec.Versions[0]
}

func (r *Shared) count() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := 0
	for _, k := range r.known {
		if !k.removed {
			n++
		}
	}
	return n
}

// Put implements Registry. Of two processes that change a model at once, one stores its version
// first; the other's follows it, or is rejected with ErrChanged if its change was of the version
// before.
func (r *Shared) Put(ctx context.Context, name string, m *models.Model, data []byte, change Change) (e Entry, replaced bool, err error) {
	if err := CheckName(name); err != nil {
		return Entry{}, false, err
	}
	if metadata, err := json.Marshal(m.Metadata); err != nil || len(metadata) > maxMetadata {
		return Entry{}, false, fmt.Errorf("%w: it has %d bytes in JSON, at most %d are allowed: remove lists from it", ErrTooLarge, len(metadata), maxMetadata)
	}
	file := ""
	defer func() {
		// After ErrUnavailable the record may have been stored. A file without a record is
		// removed by tidy.
		if err != nil && file != "" && !errors.Is(err, broker.ErrUnavailable) && ctx.Err() == nil {
			r.remove(file)
		}
	}()
	for range maxTries {
		rec, revision, err := r.read(ctx, name)
		if err != nil {
			return Entry{}, false, err
		}
		before := rec.current()
		replaced = revision > 0
		switch {
		case change.Of != "" && before.SHA256 != change.Of:
			return Entry{}, replaced, fmt.Errorf("%w: %s has another version now", ErrChanged, name)
		case !replaced && r.count() >= r.options.MaxModels:
			return Entry{}, false, fmt.Errorf("%w: %d are stored, delete one first", ErrFull, r.options.MaxModels)
		}
		if before.SHA256 == m.SHA256 && change.Of == "" && r.isStored(ctx, before) {
			e, err := r.Get(ctx, name)
			return e, true, err
		}
		if file == "" {
			name := m.SHA256 + "." + nuid.Next()
			if _, _, err := r.files.Put(ctx, name, bytes.NewReader(data)); err != nil {
				return Entry{}, replaced, fmt.Errorf("registry: %w", err)
			}
			file = name
		}
		next, dropped, err := r.next(rec, m, int64(len(data)), file, change)
		if err != nil {
			return Entry{}, replaced, err
		}
		value, err := json.Marshal(next)
		if err != nil {
			return Entry{}, replaced, fmt.Errorf("registry: %w", err)
		}
		stored, err := r.b.Update(ctx, r.kv, name, value, revision)
		if errors.Is(err, jetstream.ErrKeyExists) {
			if err := pause(ctx); err != nil {
				return Entry{}, replaced, err
			}
			continue
		}
		if err != nil {
			return Entry{}, replaced, fmt.Errorf("registry: %w", err)
		}
		r.learn(name, value, stored)
		if err := r.cache.put(m.SHA256, data); err != nil {
			r.log.Warn("cannot keep a copy of a model's file", slog.String("name", name), slog.Any("error", err))
		}
		r.remove(dropped...)
		e := (&known{record: next}).describe(name)
		return e, replaced, nil
	}
	return Entry{}, replaced, fmt.Errorf("%w: %s is changed by others all the time", ErrChanged, name)
}

// pause waits before a change is tried again.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(changedPause):
		return nil
	}
}

// isStored reports whether the file of a version is in the object store with the version's bytes.
func (r *Shared) isStored(ctx context.Context, v sharedVersion) bool {
	info, err := r.files.Info(ctx, v.File)
	return err == nil && info.SHA256 == v.SHA256
}

// next returns a record with a new version, and the files of the versions that it does not keep.
func (r *Shared) next(rec sharedRecord, m *models.Model, size int64, file string, change Change) (next sharedRecord, dropped []string, err error) {
	now := time.Now().UTC()
	v := sharedVersion{Format: m.Format, File: file, storedVersion: storedVersion{
		Version: Version{SHA256: m.SHA256, CreatedAt: now, Reason: change.Reason}, Scores: m.SHA256, Since: now, Bytes: size,
	}}
	_, v.Threshold = m.Metadata.Measure()
	if len(rec.Versions) > 0 && change.SameScores {
		v.Scores, v.Since = rec.Versions[0].Scores, rec.Versions[0].Since
	} else if i := slices.IndexFunc(rec.Versions, func(old sharedVersion) bool { return old.SHA256 == v.SHA256 }); i >= 0 {
		v.Scores = rec.Versions[i].Scores
	}
	metadata := m.Metadata
	next = sharedRecord{Key: rec.Key, By: nuid.Next(), Versions: []sharedVersion{v}, Metadata: &metadata}
	if next.Key == "" {
		next.Key = nuid.Next()
	}
	total := size
	full := false
	for _, old := range rec.Versions {
		if old.SHA256 != v.SHA256 {
			total += old.Bytes
			full = full || len(next.Versions) >= r.options.MaxVersions || total > r.options.VersionBytes
			if !full {
				next.Versions = append(next.Versions, old)
				continue
			}
		}
		dropped = append(dropped, old.File)
	}
	for {
		value, err := json.Marshal(next)
		if err != nil {
			return next, nil, fmt.Errorf("registry: %w", err)
		}
		last := len(next.Versions) - 1
		if len(value) <= maxRecord || last == 0 {
			return next, dropped, nil
		}
		dropped = append(dropped, next.Versions[last].File)
		next.Versions = next.Versions[:last]
	}
}

// remove removes files from the object store, in the background. What cannot be removed is
// removed by tidy.
func (r *Shared) remove(names ...string) {
	if len(names) == 0 {
		return
	}
	r.tasks.Go(func() {
		for _, name := range names {
			ctx, cancel := context.WithTimeout(r.removing, broker.Timeout)
			err := r.files.Remove(ctx, name)
			cancel()
			if r.removing.Err() != nil {
				return
			}
			if err != nil {
				r.log.Warn("cannot remove the file of a model yet", slog.String("file", name), slog.Any("error", err))
			}
		}
	})
}

// Delete implements Registry.
func (r *Shared) Delete(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	for range maxTries {
		rec, revision, err := r.read(ctx, name)
		if err != nil {
			return err
		}
		if revision == 0 {
			r.forgetRead(name)
			return fmt.Errorf("%w: %s", ErrUnknown, name)
		}
		err = r.b.Delete(ctx, r.kv, name, revision)
		if errors.Is(err, jetstream.ErrKeyExists) {
			if err := pause(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("registry: %w", err)
		}
		r.markRemoved(name, revision)
		var all []string
		for _, v := range rec.Versions {
			all = append(all, v.File)
		}
		r.remove(all...)
		return nil
	}
	return fmt.Errorf("%w: %s is changed by others all the time", ErrChanged, name)
}

// forgetRead forgets a model that the cluster does not have.
func (r *Shared) forgetRead(name string) {
	if k := r.peek(name); k != nil {
		r.forget(name, k.revision)
	}
}

// markRemoved takes over the removal of a record by this process. The watch reports it later,
// and before it perhaps the record once more, which must not come back.
func (r *Shared) markRemoved(name string, revision uint64) {
	r.mu.Lock()
	old := r.known[name]
	if old == nil || old.revision > revision || old.removed {
		r.mu.Unlock()
		return
	}
	r.setRemoved(name, revision)
	r.mu.Unlock()
	r.report(old.entry, Entry{})
}
