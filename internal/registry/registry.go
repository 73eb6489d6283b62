package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/files"
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

// record is an Entry that may still be Loading. entry is set before read is closed and
// does not change afterwards.
type record struct {
	entry Entry
	read  chan struct{}
}

// Registry is a folder of models. It may be used concurrently and must be closed.
type Registry struct {
	dir     string
	limits  models.Limits
	options Options
	log     *slog.Logger
	lock    *os.File

	writing sync.Mutex // held while files change
	mu      sync.Mutex
	records map[string]*record
}

// storedEnding is the extension of files written by Put, whose format is detected from
// the content. userEndings are the extensions of files that a user copied to the folder.
// Of several files with the same name, the first in the order of endings is used: a
// stored file is newer than the files that it replaced but that were not removed.
const storedEnding = ".model"

var (
	userEndings = []string{".zip", ".pt", ".onnx"}
	endings     = append([]string{storedEnding}, userEndings...)
)

const (
	// earlierTemporary is the name prefix of incomplete files of earlier versions.
	earlierTemporary = ".put-"
	lockFile         = ".lock"
)

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

// Open opens a folder of models, which it creates if necessary, and removes incomplete
// files of an earlier process. The models are Loading until Load reads them. Put stores
// at most o.MaxModels models, counting those in the folder, which are all listed even if
// they are more. Open returns ErrInUse, wrapped, when another process has the folder open.
func Open(dir string, limits models.Limits, o Options, log *slog.Logger) (*Registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	r := &Registry{dir: dir, limits: limits, options: o, log: log, lock: lock, records: map[string]*record{}}
	if err := errors.Join(r.scan(), r.openHistory()); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Close releases the folder for other processes. It may be called more than once.
func (r *Registry) Close() error {
	if err := r.lock.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// scan adds a record for each model in the folder.
func (r *Registry) scan() error {
	list, err := os.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	for _, f := range list {
		file := f.Name()
		if strings.HasPrefix(file, files.TemporaryPrefix) || strings.HasPrefix(file, earlierTemporary) {
			r.log.Info("removing an incomplete file", slog.String("file", file))
			if err := os.Remove(filepath.Join(r.dir, file)); err != nil {
				return fmt.Errorf("registry: %w", err)
			}
			continue
		}
		ending := filepath.Ext(file)
		name := strings.TrimSuffix(file, ending)
		if strings.HasPrefix(file, ".") {
			continue
		}
		if !slices.Contains(endings, ending) || CheckName(name) != nil {
			r.log.Warn("ignoring a file whose name is not that of a model", slog.String("file", file))
			continue
		}
		info, err := os.Stat(filepath.Join(r.dir, file)) // through links
		if err != nil || !info.Mode().IsRegular() {
			r.log.Warn("ignoring an entry that is not a regular file", slog.String("file", file))
			continue
		}
		if other, ok := r.records[name]; ok {
			if slices.Index(endings, filepath.Ext(other.entry.file)) < slices.Index(endings, ending) {
				r.log.Warn("ignoring a file: another file has the same model name", slog.String("file", file), slog.String("other", other.entry.file))
				continue
			}
			r.log.Warn("ignoring a file: another file has the same model name", slog.String("file", other.entry.file), slog.String("other", file))
		}
		r.records[name] = &record{read: make(chan struct{}),
			entry: Entry{Name: name, State: Loading, Bytes: info.Size(), Modified: info.ModTime().UTC(), file: file}}
	}
	return nil
}

// Load reads the models that Open found, one after another. It calls use, which may be
// nil, with each of them. A model is Broken, and logged, when its file is unusable or use
// returns an error. When the context ends, Load reads no more models; the remaining ones
// are Broken with the context's cause as the error.
func (r *Registry) Load(ctx context.Context, use func(*models.Model) error) {
	r.mu.Lock()
	var found []*record
	for _, rec := range r.records {
		select {
		case <-rec.read:
		default:
			found = append(found, rec)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(found, func(a, b *record) int { return strings.Compare(a.entry.Name, b.entry.Name) })
	unread := 0
	for _, rec := range found {
		e := rec.entry
		var m *models.Model
		var size int64
		err := context.Cause(ctx)
		if err == nil {
			m, size, err = r.read(e.file)
		}
		if err == nil && use != nil {
			err = use(m)
		}
		switch {
		case ctx.Err() != nil: // not the model's fault
			unread++
			e.State, e.Error = Broken, context.Cause(ctx).Error()
		case err != nil:
			e.State, e.Error = Broken, err.Error()
			r.log.Error("a model cannot be used", slog.String("name", e.Name), slog.String("file", e.file), slog.Any("error", err))
		default:
			e.describe(m, size)
		}
		r.mu.Lock()
		rec.entry = e
		close(rec.read)
		r.mu.Unlock()
	}
	if unread > 0 {
		r.log.Info("models were left unread", slog.Int("models", unread), slog.Any("cause", context.Cause(ctx)))
	}
}

// describe sets the entry to Ready, with the data of a model.
func (e *Entry) describe(m *models.Model, size int64) {
	e.State, e.SHA256, e.Format, e.Bytes, e.Metadata = Ready, m.SHA256, m.Format, size, &m.Metadata
}

// read reads a model and returns the size of its file in bytes.
func (r *Registry) read(file string) (*models.Model, int64, error) {
	data, err := r.bytes(file)
	if err != nil {
		return nil, 0, err
	}
	m, err := models.Read(data, r.limits)
	return m, int64(len(data)), err
}

// List returns all entries, sorted by name.
func (r *Registry) List() []Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Entry, 0, len(r.records))
	for _, rec := range r.records {
		list = append(list, rec.entry)
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Look returns an entry in any state, without waiting. It returns ErrName and ErrUnknown,
// wrapped.
func (r *Registry) Look(name string) (Entry, error) {
	rec, err := r.record(name)
	if err != nil {
		return Entry{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return rec.entry, nil
}

// Get waits until a model has been read and returns its entry, which is Ready. It returns
// ErrName, ErrUnknown and ErrBroken, wrapped, and the context's cause when the context
// ends first.
func (r *Registry) Get(ctx context.Context, name string) (Entry, error) {
	rec, err := r.record(name)
	if err != nil {
		return Entry{}, err
	}
	select {
	case <-rec.read:
	case <-ctx.Done():
		return Entry{}, context.Cause(ctx)
	}
	if rec.entry.State == Broken {
		// The same cancellation may have stopped Load.
		if ctx.Err() != nil {
			return Entry{}, context.Cause(ctx)
		}
		return Entry{}, fmt.Errorf("%w: %s: %s", ErrBroken, name, rec.entry.Error)
	}
	return rec.entry, nil
}

// record returns the record of a model. It returns ErrName and ErrUnknown, wrapped.
func (r *Registry) record(name string) (*record, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.records[name]
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrUnknown, name)
	}
	return rec, nil
}
