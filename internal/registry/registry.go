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
	// ErrName is returned for a name that no model may have.
	ErrName = errors.New("unusable model name")
	// ErrUnknown is returned when there is no model of that name.
	ErrUnknown = errors.New("no such model")
	// ErrBroken is returned for a model whose file cannot be used.
	ErrBroken = errors.New("the model's file cannot be used")
	// ErrChanged is returned when a model's file is no longer the one that was
	// looked up: it was replaced or removed since.
	ErrChanged = errors.New("the model was changed meanwhile")
	// ErrFull is returned when there is no place for another model.
	ErrFull = errors.New("no place for another model")
	// ErrInUse is returned when another service keeps its models in the folder.
	ErrInUse = errors.New("another service keeps its models in this folder")
)

// State is how far a model has come.
type State string

// The states of a model.
const (
	// Loading is a model of the folder that was not read yet.
	Loading State = "loading"
	Ready   State = "ready"
	// Broken is one whose file cannot be used; Error says why.
	Broken State = "broken"
)

// Entry is what is known of a model. Its JSON is the answer of /models/{name}.
type Entry struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	Error string `json:"error,omitempty"`
	// SHA256, Format and Bytes are those of the file; Modified is when it was
	// written.
	SHA256   string        `json:"sha256,omitempty"`
	Format   models.Format `json:"format,omitempty"`
	Bytes    int64         `json:"bytes"`
	Modified time.Time     `json:"modified"`
	// Metadata is the model's; nil before it is ready.
	Metadata *models.Metadata `json:"metadata,omitempty"`

	file string
}

// record is an Entry on its way to being one: it is set before read is closed,
// and never changes after.
type record struct {
	entry Entry
	read  chan struct{}
}

// Registry is a folder of models. Several goroutines may use it at once. It must
// be closed.
type Registry struct {
	dir    string
	limits models.Limits
	most   int
	log    *slog.Logger
	lock   *os.File

	writing sync.Mutex // held while files change
	mu      sync.Mutex
	records map[string]*record
}

// storedEnding is that of the files written here; what the file holds, its
// content says. handEndings are those of files put in by hand. Of several files
// with one name the first in this order counts: a stored one is newer than
// whatever it replaced and was not removed yet.
const storedEnding = ".model"

var (
	handEndings = []string{".zip", ".pt", ".onnx"}
	endings     = append([]string{storedEnding}, handEndings...)
)

const (
	// earlierTemporary begins the names of unfinished files of earlier versions.
	earlierTemporary = ".put-"
	lockFile         = ".lock"
)

// plainName is what a model may be called: it is a part of paths and addresses.
var plainName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,98}[a-z0-9])?$`)

// CheckName returns ErrName, wrapped, for a name that no model may have.
func CheckName(name string) error {
	if !plainName.MatchString(name) || strings.Contains(name, "..") {
		return fmt.Errorf("%w: %.100q, expected 1 to 100 of a-z, 0-9, dots, dashes and underscores, "+
			"letters or digits at both ends and no two dots in a row", ErrName, name)
	}
	return nil
}

// Open lists a folder's models, making the folder where there is none, and
// removes what an ended process left half written. The models are Loading until
// Load has read them. At most so many are kept; those in the folder already
// count, but are all listed. It returns ErrInUse when another process has the
// folder open.
func Open(dir string, limits models.Limits, most int, log *slog.Logger) (*Registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	r := &Registry{dir: dir, limits: limits, most: most, log: log, lock: lock, records: map[string]*record{}}
	if err := r.scan(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Close gives the folder free for another process. It may be called more than
// once.
func (r *Registry) Close() error {
	if err := r.lock.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func (r *Registry) scan() error {
	list, err := os.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	for _, f := range list {
		file := f.Name()
		if strings.HasPrefix(file, files.TemporaryPrefix) || strings.HasPrefix(file, earlierTemporary) {
			r.log.Info("removing what was left half written", slog.String("file", file))
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
			r.log.Warn("no model by its name", slog.String("file", file))
			continue
		}
		info, err := os.Stat(filepath.Join(r.dir, file)) // through links
		if err != nil || !info.Mode().IsRegular() {
			r.log.Warn("no model: not a file", slog.String("file", file))
			continue
		}
		if other, ok := r.records[name]; ok {
			if slices.Index(endings, filepath.Ext(other.entry.file)) < slices.Index(endings, ending) {
				r.log.Warn("passed over: another file has the name", slog.String("file", file), slog.String("other", other.entry.file))
				continue
			}
			r.log.Warn("passed over: another file has the name", slog.String("file", other.entry.file), slog.String("other", file))
		}
		r.records[name] = &record{read: make(chan struct{}),
			entry: Entry{Name: name, State: Loading, Bytes: info.Size(), Modified: info.ModTime().UTC(), file: file}}
	}
	return nil
}

// Load reads the models that Open found, one after another. A file that cannot
// be used becomes a Broken entry and a line in the log. Each model that can is
// passed to use, whose error makes it Broken, too; use may be nil. When the
// context ends, the models that are left are not read, and are Broken by its
// cause.
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
		case ctx.Err() != nil: // no fault of the model's
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

// describe makes an entry that of a model.
func (e *Entry) describe(m *models.Model, size int64) {
	e.State, e.SHA256, e.Format, e.Bytes, e.Metadata = Ready, m.SHA256, m.Format, size, &m.Metadata
}

func (r *Registry) read(file string) (*models.Model, int64, error) {
	data, err := r.bytes(file)
	if err != nil {
		return nil, 0, err
	}
	m, err := models.Read(data, r.limits)
	return m, int64(len(data)), err
}

// List gives all entries, by name.
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

// Look gives an entry as it is, Loading ones too. It returns ErrName and
// ErrUnknown, wrapped.
func (r *Registry) Look(name string) (Entry, error) {
	rec, err := r.record(name)
	if err != nil {
		return Entry{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return rec.entry, nil
}

// Get gives the entry of a model that can be used, waiting until it was read. It
// returns ErrName, ErrUnknown and ErrBroken, wrapped, and the context's cause
// when that ends first.
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
		// What ended the reading ends who waited for it, and says why.
		if ctx.Err() != nil {
			return Entry{}, context.Cause(ctx)
		}
		return Entry{}, fmt.Errorf("%w: %s: %s", ErrBroken, name, rec.entry.Error)
	}
	return rec.entry, nil
}

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
