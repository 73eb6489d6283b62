package feedback

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"time"
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

// Limits bound the feedback of a model.
type Limits struct {
	Images int   // number of images
	Bytes  int64 // size of all images together
}

var validID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ID returns the id of an image file.
func ID(image []byte) string {
	sum := sha256.Sum256(image)
	return hex.EncodeToString(sum[:])
}

// Store stores the feedback of models, each under the model's key. A record and its image are
// written completely or not at all. A Store may be used concurrently. Folders and Shared
// implement it.
type Store interface {
	// List returns the records of a model, the newest first.
	List(ctx context.Context, key string) ([]Record, error)
	// Add stores an image and its record, whose ID, Bytes and CreatedAt it sets. It replaces
	// the record of an image with the same bytes. It returns ErrFull, wrapped.
	Add(ctx context.Context, key string, r Record, image []byte) (Record, error)
	// Remove removes an image and its record. It returns ErrUnknown, wrapped.
	Remove(ctx context.Context, key, id string) error
	// Image returns a record and its image. It returns ErrUnknown, wrapped.
	Image(ctx context.Context, key, id string) (Record, []byte, error)
	// SetScores stores new scores of images, by id, of the model that scores identifies. A nil
	// score means that the model has none for the image. It ignores images that were removed.
	SetScores(ctx context.Context, key, scores string, byID map[string]*float64) error
	// Delete removes all feedback of a model.
	Delete(ctx context.Context, key string) error
}

func unknown(id string) error { return fmt.Errorf("%w: %.80q", ErrUnknown, id) }
