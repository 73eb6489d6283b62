package feedback

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/files"
)

// Errors of a Store.
var (
	// ErrUnknown is returned, wrapped, when there is no feedback with the id.
	ErrUnknown = errors.New("no such feedback")
	// ErrFull is returned, wrapped, when the limits allow no further image.
	ErrFull = errors.New("no place for more feedback")
	// ErrLabel is returned, wrapped, for an invalid label.
	ErrLabel = errors.New("unusable label")
)

// Label is the class that a person has assigned to an image.
type Label string

// The labels.
const (
	Normal    Label = "normal"
	Anomalous Label = "anomalous"
)

// ParseLabel returns ErrLabel, wrapped, for text that is not a label.
func ParseLabel(text string) (Label, error) {
	if l := Label(text); l == Normal || l == Anomalous {
		return l, nil
	}
	return "", fmt.Errorf("%w: got %.40q, expected %s or %s", ErrLabel, text, Normal, Anomalous)
}

// Record describes an image.
type Record struct {
	// ID is the SHA-256 of the image file in hexadecimal.
	ID        string    `json:"id"`
	Label     Label     `json:"label"`
	Filename  string    `json:"filename"`
	CreatedAt time.Time `json:"created_at"`
	// Score is the image's anomaly score by the model Scores, or nil if that model has
	// none for it.
	Score *float64 `json:"anomaly_score"`
	// Scores identifies the model that computed Score.
	Scores string `json:"scores"`
	// Bytes is the size of the file.
	Bytes int64 `json:"bytes"`
}

// Limits bound the feedback in a folder.
type Limits struct {
	Images int   // number of images
	Bytes  int64 // size of all images together
}

const (
	indexFile = "feedback.json"
	imagesDir = "feedback"
	// maxIndexBytes is the maximum size of the index, and maxAddedBytes that after Add: new
	// scores may be longer than the ones before.
	maxIndexBytes = 16 << 20
	maxAddedBytes = maxIndexBytes / 2
)

var validID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ID returns the id of an image file.
func ID(image []byte) string {
	sum := sha256.Sum256(image)
	return hex.EncodeToString(sum[:])
}

// Store stores feedback in folders. A record and its image are written completely or not at
// all. A Store may be used concurrently, but only one may use a folder.
type Store struct {
	limits Limits
	mu     sync.Mutex
}

// NewStore returns a store with the limits for each folder.
func NewStore(l Limits) *Store { return &Store{limits: l} }

// List returns the records in a folder, the newest first.
func (s *Store) List(dir string) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return list(dir)
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

// Add stores an image and its record, whose ID, Bytes and CreatedAt it sets. It replaces the
// record of an image with the same bytes. It returns ErrFull, wrapped.
func (s *Store) Add(dir string, r Record, image []byte) (Record, error) {
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

// Remove removes an image and its record. It returns ErrUnknown, wrapped.
func (s *Store) Remove(dir, id string) error {
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

func unknown(id string) error { return fmt.Errorf("%w: %.80q", ErrUnknown, id) }

// Image returns a record and its image. It returns ErrUnknown, wrapped.
func (s *Store) Image(dir, id string) (Record, []byte, error) {
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

// SetScores stores new scores of images, by id, of the model that scores identifies. A nil
// score means that the model has none for the image. It ignores images that were removed.
func (s *Store) SetScores(dir, scores string, byID map[string]*float64) error {
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
