package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/models"
)

// record is an Entry that may still be Loading. entry is set before read is closed and
// does not change afterwards.
type record struct {
	entry Entry
	read  chan struct{}
}

// Folder is a Registry in a folder. It may be used concurrently and must be closed.
type Folder struct {
	dir     string
	limits  models.Limits
	options Options
	log     *slog.Logger
	lock    *os.File

	// deleting is locked for writing while a model is deleted with its folder, and for reading
	// by Hold. It is locked before writing and mu.
	deleting sync.RWMutex
	writing  sync.Mutex // held while files change
	mu       sync.Mutex
	records  map[string]*record
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

// OpenFolder opens a folder of models, which it creates if necessary, and removes incomplete
// files of an earlier process. The models are Loading until Load reads them. Put stores
// at most o.MaxModels models, counting those in the folder, which are all listed even if
// they are more. OpenFolder returns ErrInUse, wrapped, when another process has the folder open.
func OpenFolder(dir string, limits models.Limits, o Options, log *slog.Logger) (*Folder, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	r := &Folder{dir: dir, limits: limits, options: o, log: log, lock: lock, records: map[string]*record{}}
	if err := errors.Join(r.scan(), r.openHistory()); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Hold implements Registry.
func (r *Folder) Hold() (release func()) {
	r.deleting.RLock()
	return r.deleting.RUnlock
}

// Close releases the folder for other processes. It may be called more than once.
func (r *Folder) Close() error {
	if err := r.lock.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// scan adds a record for each model in the folder.
func (r *Folder) scan() error {
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
			entry: Entry{Key: name, Name: name, State: Loading, Bytes: info.Size(), Modified: info.ModTime().UTC(), file: file}}
	}
	return nil
}

// Load reads the models that OpenFolder found, one after another. It calls use, which may be
// nil, with each of them. A model is Broken, and logged, when its file is unusable or use
// returns an error. When the context ends, Load reads no more models; the remaining ones
// are Broken with the context's cause as the error.
func (r *Folder) Load(ctx context.Context, use func(*models.Model) error) {
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

// read reads a model and returns the size of its file in bytes.
func (r *Folder) read(file string) (*models.Model, int64, error) {
	data, err := r.bytes(file)
	if err != nil {
		return nil, 0, err
	}
	m, err := models.Read(data, r.limits)
	return m, int64(len(data)), err
}

// List returns all entries, sorted by name.
func (r *Folder) List() []Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Entry, 0, len(r.records))
	for _, rec := range r.records {
		list = append(list, rec.entry)
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Loaded implements Registry.
func (r *Folder) Loaded() bool {
	return !slices.ContainsFunc(r.List(), func(e Entry) bool { return e.State == Loading })
}

// Look returns an entry in any state, without waiting. It returns ErrName and ErrUnknown,
// wrapped.
func (r *Folder) Look(_ context.Context, name string) (Entry, error) { return r.look(name) }

func (r *Folder) look(name string) (Entry, error) {
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
func (r *Folder) Get(ctx context.Context, name string) (Entry, error) {
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
func (r *Folder) record(name string) (*record, error) {
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
