package feedback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/files"
)

const (
	indexFile = "feedback.json"
	imagesDir = "feedback"
	// maxIndexBytes is the maximum size of the index, and maxAddedBytes that after Add: new
	// scores may be longer than the ones before.
	maxIndexBytes = 16 << 20
	maxAddedBytes = maxIndexBytes / 2
)

// Folders is a Store in folders, one for each model. Only one may use a folder.
type Folders struct {
	limits Limits
	path   func(key string) string
	mu     sync.Mutex
}

// NewFolders returns a store with the limits for each folder, whose paths path returns.
func NewFolders(l Limits, path func(key string) string) *Folders {
	return &Folders{limits: l, path: path}
}

// List implements Store.
func (s *Folders) List(_ context.Context, key string) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return list(s.path(key))
}

func list(dir string) ([]Record, error) {
	path := filepath.Join(dir, indexFile)
	data, err := files.ReadAtMost(path, maxIndexBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && len(data) > maxIndexBytes {
		err = fmt.Errorf("%s has more than %d bytes", path, maxIndexBytes)
	}
	var index struct{ Feedback []Record }
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	if err != nil {
		return nil, fmt.Errorf("feedback: %w", err)
	}
	return slices.DeleteFunc(index.Feedback, func(r Record) bool { return !validID.MatchString(r.ID) }), nil
}

// encode returns the content of the index.
func encode(records []Record) ([]byte, error) {
	data, err := json.MarshalIndent(map[string]any{"feedback": records}, "", " ")
	if err != nil {
		return nil, fmt.Errorf("feedback: %w", err)
	}
	return data, nil
}

func write(dir string, records []Record) error {
	data, err := encode(records)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, indexFile), data)
}

func writeFile(path string, data []byte) error {
	err := files.WriteAtomic(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return fmt.Errorf("feedback: %w", err)
	}
	return nil
}

// Add implements Store.
func (s *Folders) Add(_ context.Context, key string, r Record, image []byte) (Record, error) {
	dir := s.path(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	records, err := list(dir)
	if err != nil {
		return Record{}, err
	}
	r.ID, r.Bytes, r.CreatedAt = ID(image), int64(len(image)), time.Now().UTC()
	before := len(records)
	records = slices.DeleteFunc(records, func(old Record) bool { return old.ID == r.ID })
	known := len(records) < before
	total := r.Bytes
	for _, old := range records {
		total += old.Bytes
	}
	if len(records) >= s.limits.Images || total > s.limits.Bytes {
		return Record{}, fmt.Errorf("%w: %d images of %d bytes are stored, delete some first", ErrFull, len(records), total-r.Bytes)
	}
	records = slices.Insert(records, 0, r)
	index, err := encode(records)
	if err != nil {
		return Record{}, err
	}
	if len(index) > maxAddedBytes {
		return Record{}, fmt.Errorf("%w: the list of %d images has more than %d bytes, delete some first", ErrFull, len(records)-1, maxAddedBytes)
	}
	path := filepath.Join(dir, imagesDir, r.ID)
	if err := writeFile(path, image); err != nil {
		return Record{}, err
	}
	// If the process ends here, the image is removed by the next Add.
	if err := writeFile(filepath.Join(dir, indexFile), index); err != nil {
		if !known {
			err = errors.Join(err, os.Remove(path))
		}
		return Record{}, err
	}
	return r, removeOthers(filepath.Join(dir, imagesDir), records)
}

// removeOthers removes the files that have no record: images of a process that ended
// between two writes, and temporary files.
func removeOthers(dir string, records []Record) error {
	found, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("feedback: %w", err)
	}
	keep := map[string]bool{}
	for _, r := range records {
		keep[r.ID] = true
	}
	for _, f := range found {
		if !keep[f.Name()] {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return fmt.Errorf("feedback: %w", err)
			}
		}
	}
	return nil
}

// Remove implements Store.
func (s *Folders) Remove(_ context.Context, key, id string) error {
	dir := s.path(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	records, err := list(dir)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(records, func(r Record) bool { return r.ID == id })
	if i < 0 {
		return unknown(id)
	}
	if err := write(dir, slices.Delete(records, i, i+1)); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, imagesDir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("feedback: %w", err)
	}
	return nil
}

// Image implements Store.
func (s *Folders) Image(_ context.Context, key, id string) (Record, []byte, error) {
	dir := s.path(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	records, err := list(dir)
	if err != nil {
		return Record{}, nil, err
	}
	i := slices.IndexFunc(records, func(r Record) bool { return r.ID == id })
	if i < 0 {
		return Record{}, nil, unknown(id)
	}
	data, err := files.ReadAtMost(filepath.Join(dir, imagesDir, id), records[i].Bytes)
	if errors.Is(err, fs.ErrNotExist) || err == nil && ID(data) != id {
		return Record{}, nil, fmt.Errorf("%w: the image of %.80q is gone", ErrUnknown, id)
	}
	if err != nil {
		return Record{}, nil, fmt.Errorf("feedback: %w", err)
	}
	return records[i], data, nil
}

// SetScores implements Store.
func (s *Folders) SetScores(_ context.Context, key, scores string, byID map[string]*float64) error {
	dir := s.path(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	records, err := list(dir)
	if err != nil {
		return err
	}
	changed := false
	for i, r := range records {
		if score, ok := byID[r.ID]; ok {
			records[i].Score, records[i].Scores = score, scores
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return write(dir, records)
}

// Delete implements Store. The model's folder, which is deleted with the model, has all
// of its feedback.
func (s *Folders) Delete(context.Context, string) error { return nil }
