package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/models"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// tidyInterval is the time between two searches for files without a record, and tidyAge
	// how long a file may have none: longer than a Put takes.
	tidyInterval = 10 * time.Minute
	tidyAge      = 45 * time.Minute
	// markerAge is how long a deleted name leaves a marker.
	markerAge = 24 * time.Hour
)

// Bytes implements Registry.
func (r *Shared) Bytes(ctx context.Context, e Entry) ([]byte, error) {
	data, err := r.fetch(ctx, e.SHA256, e.file)
	if errors.Is(err, broker.ErrNotFound) {
		// So that the caller finds the version that replaced it.
		if _, err := r.refresh(ctx, e.Name); err != nil && !errors.Is(err, ErrUnknown) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: the file of %s is gone", ErrChanged, e.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("registry: the file of %s: %w", e.Name, err)
	}
	return data, nil
}

// VersionBytes implements Registry.
func (r *Shared) VersionBytes(ctx context.Context, name, sha256 string) (Version, []byte, error) {
	k, err := r.look(ctx, name)
	if err != nil {
		return Version{}, nil, err
	}
	missing := fmt.Errorf("%w of %s: %.80q; GET /models/%s/versions lists them", ErrNoVersion, name, sha256, name)
	is := func(v sharedVersion) bool { return v.SHA256 == sha256 }
	i := slices.IndexFunc(k.record.Versions, is)
	if i < 0 { // it may be new
		if k, err = r.refresh(ctx, name); err != nil {
			return Version{}, nil, err
		}
		if i = slices.IndexFunc(k.record.Versions, is); i < 0 {
			return Version{}, nil, missing
		}
	}
	v := k.record.Versions[i]
	data, err := r.fetch(ctx, v.SHA256, v.File)
	if errors.Is(err, broker.ErrNotFound) {
		return Version{}, nil, missing
	}
	if err != nil {
		return Version{}, nil, fmt.Errorf("registry: a version of %s: %w", name, err)
	}
	return v.version(k.entry), data, nil
}

// fetch returns the file with the SHA-256, from the cache or the object store.
func (r *Shared) fetch(ctx context.Context, sha256, file string) ([]byte, error) {
	if data := r.cache.get(sha256); data != nil {
		return data, nil
	}
	stored, err := r.files.OpenStored(ctx, file)
	if err != nil {
		return nil, err
	}
	if stored.Bytes > r.limits.MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes", models.ErrTooLarge, stored.Bytes)
	}
	data := make([]byte, stored.Bytes)
	if _, err := io.ReadFull(stored, data); err != nil {
		return nil, err
	}
	if models.Identity(data) != sha256 {
		return nil, broker.ErrDamaged
	}
	if err := r.cache.put(sha256, data); err != nil {
		r.log.Warn("cannot keep a copy of a model's file", slog.Any("error", err))
	}
	return data, nil
}

// Keys returns the keys (see Entry.Key) of all models in the cluster, which it asks for them.
func (r *Shared) Keys(ctx context.Context) (map[string]bool, error) {
	keys := map[string]bool{}
	err := r.readAll(ctx, func(rec sharedRecord) { keys[rec.Key] = true })
	return keys, err
}

// readAll calls use with all records, from the cluster. A damaged record is an error: what it
// refers to is not known.
func (r *Shared) readAll(ctx context.Context, use func(sharedRecord)) error {
	var stream jetstream.Stream
	err := r.b.Retry(ctx, func(ctx context.Context) (err error) {
		stream, err = r.b.JetStream.Stream(ctx, "KV_"+bucket)
		return err
	})
	if err != nil {
		return err
	}
	const prefix = "$KV." + bucket + "."
	subjects, _, err := r.b.Subjects(ctx, stream, prefix+">")
	if err != nil {
		return err
	}
	for subject := range subjects {
		name := strings.TrimPrefix(subject, prefix)
		rec, revision, err := r.read(ctx, name)
		switch {
		case err != nil:
			return err
		case revision == 0: // deleted
		case rec.Key == "":
			return fmt.Errorf("the record of %s is damaged", name)
		default:
			use(rec)
		}
	}
	return nil
}

// tidy removes files without a record, from time to time, until ctx ends: a process may end
// between the change of a record and that of the files.
func (r *Shared) tidy(ctx context.Context) {
	tidier := r.files.Tidier(tidyAge)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(tidyInterval):
		}
		if err := r.tidyOnce(ctx, tidier); err != nil && ctx.Err() == nil {
			r.log.Warn("cannot look for files of deleted models", slog.Any("error", err))
		}
	}
}

func (r *Shared) tidyOnce(ctx context.Context, tidier *broker.Tidier) error {
	used := map[string]bool{}
	err := r.readAll(ctx, func(rec sharedRecord) {
		for _, v := range rec.Versions {
			used[v.File] = true
		}
	})
	if err != nil {
		return err
	}
	removed, err := tidier.Tidy(ctx, func(name string) bool { return used[name] })
	if removed > 0 {
		r.log.Info("removed files that belong to no model", slog.Int("removed", removed))
	}
	return errors.Join(err, r.b.PurgeMarkers(ctx, r.kv, markerAge))
}
