package feedback

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

const (
	// bucket is the name of the key-value bucket with the index of each model's feedback, and
	// of the object store of the images.
	bucket = "feedback"
	// maxSharedIndex is the maximum size of a compressed index, in bytes, and maxSharedAdded
	// that after Add: new scores may be longer. A message of a NATS server has 1 MiB by default.
	maxSharedIndex = 960 << 10
	maxSharedAdded = maxSharedIndex / 2
	// maxTries bounds how often a change is tried again that others overtook, and changedPause
	// is the pause before.
	maxTries     = 50
	changedPause = 5 * time.Millisecond
	// tidyInterval is the time between two searches for what belongs to no model, and tidyAge
	// how long an image may have no record: longer than an Add takes.
	tidyInterval = 10 * time.Minute
	tidyAge      = 45 * time.Minute
	markerAge    = 24 * time.Hour
	// removalTime is the longest time that Close waits for the removal of images.
	removalTime = 3 * time.Second
)

// errBusy is returned when a list is changed by others all the time.
var errBusy = errors.New("feedback: the list is changed by others all the time")

// Shared is a Store in a NATS cluster. The records of a model are one value, whose changes are
// compare-and-set. It must be closed.
type Shared struct {
	b      *broker.Broker
	kv     jetstream.KeyValue
	files  *broker.Files
	limits Limits
	log    *slog.Logger
	models func(context.Context) (map[string]bool, error)
	stop   context.CancelFunc
	tasks  sync.WaitGroup

	removing context.Context    // of removals of images
	abandon  context.CancelFunc // ends removing
}

// sharedIndex is the value of a model's key, compressed.
type sharedIndex struct {
	// By is different in each written value, so that a writer recognizes its own.
	By       string         `json:"by"`
	Feedback []sharedRecord `json:"feedback"`
}

type sharedRecord struct {
	Record
	// File is the name of the image in the object store. An image that is stored again has
	// another name.
	File string `json:"file"`
}

// OpenShared opens the feedback of a cluster. models returns the keys of all models, for the
// removal of what is left of others.
func OpenShared(ctx context.Context, b *broker.Broker, l Limits, models func(context.Context) (map[string]bool, error), log *slog.Logger) (*Shared, error) {
	kv, err := b.KeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket})
	if err != nil {
		return nil, fmt.Errorf("feedback: %w", err)
	}
	files, err := b.Files(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("feedback: %w", err)
	}
	s := &Shared{b: b, kv: kv, files: files, limits: l, log: log, models: models}
	tidying, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.removing, s.abandon = context.WithCancel(context.Background())
	s.tasks.Go(func() { b.Lead(tidying, "tidy-feedback", s.tidy) })
	return s, nil
}

// Close ends what the store does in the background. It leaves the broker open. Images that cannot
// be removed soon are removed later, by tidy.
func (s *Shared) Close() {
	s.stop()
	defer s.abandon()
	defer time.AfterFunc(removalTime, s.abandon).Stop()
	s.tasks.Wait()
}

// read returns the index of a model and its revision, which is 0 if there is none.
func (s *Shared) read(ctx context.Context, key string) (index sharedIndex, revision uint64, err error) {
	e, err := s.b.Get(ctx, s.kv, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return index, 0, nil
	}
	if err != nil {
		return index, 0, fmt.Errorf("feedback: %w", err)
	}
	z, err := gzip.NewReader(bytes.NewReader(e.Value()))
	var data []byte
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(z, maxIndexBytes+1))
	}
	if err == nil && len(data) > maxIndexBytes {
		err = fmt.Errorf("it has more than %d bytes", maxIndexBytes)
	}
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	if err != nil {
		return index, 0, fmt.Errorf("feedback: the list of a model is damaged: %w", err)
	}
	index.Feedback = slices.DeleteFunc(index.Feedback, func(r sharedRecord) bool { return !validID.MatchString(r.ID) })
	return index, e.Revision(), nil
}

// encodeShared returns the value for records. It returns ErrFull, wrapped, for records that take
// more than limit bytes.
func encodeShared(records []sharedRecord, limit int) ([]byte, error) {
	data, err := json.Marshal(sharedIndex{nuid.Next(), records})
	if err != nil {
		return nil, fmt.Errorf("feedback: %w", err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(data) // a bytes.Buffer does not fail
	_ = z.Close()
	// What is compressed well must be small enough to be read again, too.
	if b.Len() > limit || len(data) > maxIndexBytes/maxSharedIndex*limit {
		return nil, fmt.Errorf("%w: the list of %d images has more than %d bytes, delete some first", ErrFull, len(records), limit)
	}
	return b.Bytes(), nil
}

// change replaces the records of a model by those that f returns. f is called again when
// another process has changed them meanwhile. f may return the records it was given to change
// nothing.
func (s *Shared) change(ctx context.Context, key string, limit int, f func([]sharedRecord) (records []sharedRecord, changed bool, err error)) error {
	for range maxTries {
		index, revision, err := s.read(ctx, key)
		if err != nil {
			return err
		}
		records, changed, err := f(index.Feedback)
		if err != nil || !changed {
			return err
		}
		value, err := encodeShared(records, limit)
		if err != nil {
			return err
		}
		_, err = s.b.Update(ctx, s.kv, key, value, revision)
		if !errors.Is(err, jetstream.ErrKeyExists) {
			if err != nil {
				err = fmt.Errorf("feedback: %w", err)
			}
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(changedPause):
		}
	}
	return errBusy
}

// List implements Store.
func (s *Shared) List(ctx context.Context, key string) ([]Record, error) {
	index, _, err := s.read(ctx, key)
	if err != nil {
		return nil, err
	}
	var list []Record
	for _, r := range index.Feedback {
		list = append(list, r.Record)
	}
	return list, nil
}

// Add implements Store.
func (s *Shared) Add(ctx context.Context, key string, r Record, image []byte) (_ Record, err error) {
	r.ID, r.Bytes, r.CreatedAt = ID(image), int64(len(image)), time.Now().UTC()
	// Checked before the image is stored, and again with what others have added meanwhile.
	index, _, err := s.read(ctx, key)
	if err == nil {
		_, _, err = s.with(index.Feedback, sharedRecord{Record: r})
	}
	if err != nil {
		return Record{}, err
	}
	added := sharedRecord{Record: r, File: key + "/" + r.ID + "." + nuid.Next()}
	if _, _, err := s.files.Put(ctx, added.File, bytes.NewReader(image)); err != nil {
		return Record{}, fmt.Errorf("feedback: %w", err)
	}
	replaced := ""
	err = s.change(ctx, key, maxSharedAdded, func(records []sharedRecord) ([]sharedRecord, bool, error) {
		records, replaced, err = s.with(records, added)
		return records, true, err
	})
	if err != nil {
		// After ErrUnavailable the record may have been stored.
		if !errors.Is(err, broker.ErrUnavailable) && ctx.Err() == nil {
			s.remove(added.File)
		}
		return Record{}, err
	}
	if replaced != "" {
		s.remove(replaced)
	}
	return r, nil
}

// with returns records with another one first, and the file of the record that it replaces.
func (s *Shared) with(records []sharedRecord, r sharedRecord) (_ []sharedRecord, replaced string, err error) {
	var kept []sharedRecord
	total := r.Bytes
	for _, old := range records {
		if old.ID == r.ID {
			replaced = old.File
			continue
		}
		kept = append(kept, old)
		total += old.Bytes
	}
	if len(kept) >= s.limits.Images || total > s.limits.Bytes {
		return nil, "", fmt.Errorf("%w: %d images of %d bytes are stored, delete some first", ErrFull, len(kept), total-r.Bytes)
	}
	return slices.Insert(kept, 0, r), replaced, nil
}

// remove removes an image, in the background. What cannot be removed is removed by tidy.
func (s *Shared) remove(file string) {
	s.tasks.Go(func() { s.removeNow(file) })
}

func (s *Shared) removeNow(file string) {
	ctx, cancel := context.WithTimeout(s.removing, broker.Timeout)
	defer cancel()
	if err := s.files.Remove(ctx, file); err != nil && s.removing.Err() == nil {
		s.log.Warn("cannot remove an image of feedback yet", slog.String("file", file), slog.Any("error", err))
	}
}

// Remove implements Store.
func (s *Shared) Remove(ctx context.Context, key, id string) error {
	file := ""
	err := s.change(ctx, key, maxSharedIndex, func(records []sharedRecord) ([]sharedRecord, bool, error) {
		i := slices.IndexFunc(records, func(r sharedRecord) bool { return r.ID == id })
		if i < 0 {
			return nil, false, unknown(id)
		}
		file = records[i].File
		return slices.Delete(records, i, i+1), true, nil
	})
	if err == nil {
		s.remove(file)
	}
	return err
}

// Image implements Store.
func (s *Shared) Image(ctx context.Context, key, id string) (Record, []byte, error) {
	index, _, err := s.read(ctx, key)
	if err != nil {
		return Record{}, nil, err
	}
	i := slices.IndexFunc(index.Feedback, func(r sharedRecord) bool { return r.ID == id })
	if i < 0 {
		return Record{}, nil, unknown(id)
	}
	r := index.Feedback[i]
	content, err := s.files.Open(ctx, r.File)
	var data []byte
	if err == nil && content.Bytes == r.Bytes {
		data = make([]byte, r.Bytes)
		_, err = io.ReadFull(content, data)
	}
	if errors.Is(err, broker.ErrNotFound) || err == nil && ID(data) != id {
		return Record{}, nil, fmt.Errorf("%w: the image of %.80q is gone", ErrUnknown, id)
	}
	if err != nil {
		return Record{}, nil, fmt.Errorf("feedback: %w", err)
	}
	return r.Record, data, nil
}

// SetScores implements Store.
func (s *Shared) SetScores(ctx context.Context, key, scores string, byID map[string]*float64) error {
	return s.change(ctx, key, maxSharedIndex, func(records []sharedRecord) ([]sharedRecord, bool, error) {
		changed := false
		for i, r := range records {
			if score, ok := byID[r.ID]; ok {
				records[i].Score, records[i].Scores = score, scores
				changed = true
			}
		}
		return records, changed, nil
	})
}

// Delete implements Store. The images are removed in the background.
func (s *Shared) Delete(ctx context.Context, key string) error {
	if err := s.b.Delete(ctx, s.kv, key, 0); err != nil {
		return fmt.Errorf("feedback: %w", err)
	}
	s.tasks.Go(func() {
		names, err := s.files.List(s.removing, key+"/")
		for _, name := range names { // one after the other: each is work for all servers
			if s.removing.Err() == nil {
				s.removeNow(name)
			}
		}
		if err != nil && s.removing.Err() == nil {
			s.log.Warn("cannot remove the feedback of a deleted model yet", slog.Any("error", err))
		}
	})
	return nil
}

// tidy removes what belongs to no model or has no record, from time to time, until ctx ends: a
// process may end between the change of a record and that of its image.
func (s *Shared) tidy(ctx context.Context) {
	tidier := s.files.Tidier(tidyAge)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(tidyInterval):
		}
		if err := s.tidyOnce(ctx, tidier); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot look for the feedback of deleted models", slog.Any("error", err))
		}
	}
}

func (s *Shared) tidyOnce(ctx context.Context, tidier *broker.Tidier) error {
	var stream jetstream.Stream
	err := s.b.Retry(ctx, func(ctx context.Context) (err error) {
		stream, err = s.b.JetStream.Stream(ctx, "KV_"+bucket)
		return err
	})
	if err != nil {
		return err
	}
	const prefix = "$KV." + bucket + "."
	subjects, _, err := s.b.Subjects(ctx, stream, prefix+">")
	if err != nil {
		return err
	}
	// Read after the lists of feedback: no model of them is newer.
	live, err := s.models(ctx)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for subject := range subjects {
		key := strings.TrimPrefix(subject, prefix)
		if !live[key] {
			if err := s.b.DeleteStored(ctx, s.kv, key); err != nil {
				return err
			}
			continue
		}
		index, _, err := s.read(ctx, key)
		if err != nil {
			return err
		}
		for _, r := range index.Feedback {
			used[r.File] = true
		}
	}
	removed, err := tidier.Tidy(ctx, func(name string) bool { return used[name] })
	if removed > 0 {
		s.log.Info("removed images that belong to no feedback", slog.Int("removed", removed))
	}
	return errors.Join(err, s.b.PurgeMarkers(ctx, s.kv, markerAge))
}
