package registry

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/deepmed/anomaly/models"
)

// Errors of the registry.
var (
	// ErrName is returned for an invalid model name.
	ErrName = errors.New("unusable model name")
	// ErrUnknown is returned when there is no model with the name.
	ErrUnknown = errors.New("no such model")
	// ErrBroken is returned for a model whose file is unusable.
	ErrBroken = errors.New("the model's file cannot be used")
	// ErrChanged is returned when a model's file was replaced or removed after its
	// entry was looked up.
	ErrChanged = errors.New("the model was changed meanwhile")
	// ErrFull is returned when the maximum number of models is stored.
	ErrFull = errors.New("no place for another model")
	// ErrInUse is returned when another process has the folder open.
	ErrInUse = errors.New("another service keeps its models in this folder")
)

// Registry stores models under names, with their earlier versions. Folder and Shared
// implement it. It may be used concurrently and must be closed.
//
// Every method that has a name returns ErrName, wrapped, for an invalid one and ErrUnknown,
// wrapped, if there is no model with it.
type Registry interface {
	// List returns all entries, sorted by name.
	List() []Entry
	// Look returns an entry in any state, without waiting for its file to be read.
	Look(ctx context.Context, name string) (Entry, error)
	// Get waits until a model has been read and returns its entry, which is Ready. It returns
	// ErrBroken, wrapped, and the context's cause when the context ends first.
	Get(ctx context.Context, name string) (Entry, error)
	// Bytes returns the file of an entry. It returns ErrChanged, wrapped, when the file has
	// been replaced or removed.
	Bytes(ctx context.Context, e Entry) ([]byte, error)
	// Put stores a model, which was read from data, as a new version under a name. replaced
	// reports whether it replaced another model, which is kept as an earlier version. A model
	// with the same bytes as the current one changes nothing. On success the model is durable;
	// on an error nothing has changed. It returns ErrFull and ErrChanged, wrapped.
	Put(ctx context.Context, name string, m *models.Model, data []byte, change Change) (e Entry, replaced bool, err error)
	// Delete removes a model and its versions. Bytes that were read before remain usable.
	Delete(ctx context.Context, name string) error
	// Hold keeps models from being deleted until the returned function is called, where what is
	// kept about a model besides its versions is in the registry's folder. A caller that
	// writes there holds the registry and looks the model up first.
	Hold() (release func())
	// Versions returns the versions of a model, the newest first.
	Versions(ctx context.Context, name string) ([]Version, error)
	// Current returns the current version of a model, which must be Ready. It returns
	// ErrBroken, wrapped.
	Current(ctx context.Context, name string) (Version, error)
	// VersionBytes returns the file of a version. It returns ErrNoVersion, wrapped.
	VersionBytes(ctx context.Context, name, sha256 string) (Version, []byte, error)
	// Load reads the models that were found at the start. It calls use, which may be nil, with
	// each of them.
	Load(ctx context.Context, use func(*models.Model) error)
	// Loaded reports whether Load has tried to read all models that were found at the start.
	Loaded() bool
	// Close releases the registry. It may be called more than once.
	Close() error
}

// State is the state of a model.
type State string

// The states of a model.
const (
	// Loading means that the file has not been read yet.
	Loading State = "loading"
	// Ready means that the model can be used.
	Ready State = "ready"
	// Broken means that the file is unusable; Entry.Error is the reason.
	Broken State = "broken"
)

// Entry describes a model. Its JSON is the response of GET /models/{name}.
type Entry struct {
	// Key identifies the model from its first version to its deletion. What is kept about the
	// model elsewhere is kept under it. A later model of the same name has another key, or
	// finds nothing under this one.
	Key   string `json:"-"`
	Name  string `json:"name"`
	State State  `json:"state"`
	Error string `json:"error,omitempty"`
	// SHA256, Format, Bytes and Modified describe the file. Bytes is its size.
	SHA256   string        `json:"sha256,omitempty"`
	Format   models.Format `json:"format,omitempty"`
	Bytes    int64         `json:"bytes"`
	Modified time.Time     `json:"modified"`
	// Metadata is the model's metadata; nil unless the state is Ready.
	Metadata *models.Metadata `json:"metadata,omitempty"`

	file string
}

// validName matches valid model names, which are parts of file paths and URLs.
var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,98}[a-z0-9])?$`)

// CheckName returns ErrName, wrapped, for an invalid model name.
func CheckName(name string) error {
	if !validName.MatchString(name) || strings.Contains(name, "..") {
		return fmt.Errorf("%w: %.100q, expected 1 to 100 of a-z, 0-9, dots, dashes and underscores, "+
			"letters or digits at both ends and no two dots in a row", ErrName, name)
	}
	return nil
}

// Options limit what a Registry stores.
type Options struct {
	// MaxModels is the maximum number of models.
	MaxModels int
	// MaxVersions is the maximum number of versions of a model, with the current one,
	// and VersionBytes the maximum size of their files together. The oldest are removed.
	// The current version is kept whatever its size.
	MaxVersions  int
	VersionBytes int64
}

// describe sets the entry to Ready, with the data of a model.
func (e *Entry) describe(m *models.Model, size int64) {
	e.State, e.SHA256, e.Format, e.Bytes, e.Metadata = Ready, m.SHA256, m.Format, size, &m.Metadata
}
