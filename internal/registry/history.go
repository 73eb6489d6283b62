package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/models"
)

// ErrNoVersion is returned when a model has no version with the SHA-256.
var ErrNoVersion = errors.New("no such version")

// Version describes a version of a model. Its JSON is an element of the answer of
// GET /models/{name}/versions.
type Version struct {
	SHA256    string    `json:"sha256"`
	CreatedAt time.Time `json:"created_at"`
	// Reason is why the version was made: a short sentence.
	Reason    string  `json:"reason"`
	Threshold float64 `json:"threshold"`
	Current   bool    `json:"current"`
	// Scores is the SHA-256 of the earliest version whose anomaly scores equal this
	// version's. A moved threshold does not change scores.
	Scores string `json:"-"`
	// Since is when the model was last calibrated, restored or replaced: moved
	// thresholds do not change it.
	Since time.Time `json:"-"`
}

// storedVersion is a Version in versions.json. Which version is current is not stored:
// it is the one whose SHA-256 is that of the model's file.
type storedVersion struct {
	Version
	Current bool      `json:"current,omitempty"`
	Scores  string    `json:"scores"`
	Since   time.Time `json:"since"`
	Bytes   int64     `json:"bytes"`
}

// Change describes a change that makes a version.
type Change struct {
	// Reason is a short sentence.
	Reason string
	// SameScores reports that only the threshold differs from the version before.
	SameScores bool
	// Of is the SHA-256 that the current version must have; empty for any.
	Of string
}

// RestoreOf returns the change that makes a version the current one again.
func RestoreOf(v Version) Change {
	return Change{Reason: restoredPrefix + strings.TrimPrefix(v.Reason, restoredPrefix)}
}

const (
	// historyDir is the folder below that of the models with one folder for each model:
	// its earlier versions, feedback and verdicts. scan ignores it because
	// of the dot, also that of earlier versions of this program.
	historyDir   = ".history"
	versionsFile = "versions.json"
	versionsDir  = "versions"
	// deletedPrefix is the prefix of a model's folder while it is removed.
	deletedPrefix = ".deleted-"
	// maxVersionsFile is the maximum size of versions.json, in bytes.
	maxVersionsFile = 1 << 20
	// copiedReason is the reason of a file that a user copied into the folder.
	copiedReason = "found in the folder"
	// restoredPrefix begins the reason of a restored version.
	restoredPrefix = "restored: "
)

var validSHA256 = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Path returns the folder for what is kept about a model besides its file. It may not
// exist. Delete removes it. The name must be valid.
func (r *Folder) Path(name string) string { return filepath.Join(r.dir, historyDir, name) }

// openHistory removes what an earlier process left incomplete.
func (r *Folder) openHistory() error {
	root := filepath.Join(r.dir, historyDir)
	list, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	for _, f := range list {
		path := filepath.Join(root, f.Name())
		if strings.HasPrefix(f.Name(), deletedPrefix) {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("registry: %w", err)
			}
			continue
		}
		if !f.IsDir() || CheckName(f.Name()) != nil {
			continue
		}
		for _, dir := range []string{path, filepath.Join(path, versionsDir)} {
			if err := removeTemporary(dir); err != nil {
				return fmt.Errorf("registry: %w", err)
			}
		}
	}
	return nil
}

// removeTemporary removes the temporary files of files.WriteAtomic in a folder.
func removeTemporary(dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, f := range list {
		if strings.HasPrefix(f.Name(), files.TemporaryPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, f.Name())))
		}
	}
	return err
}

// Versions returns the versions of a model, the newest first. It returns ErrName and
// ErrUnknown, wrapped.
func (r *Folder) Versions(_ context.Context, name string) ([]Version, error) {
	if _, err := r.look(name); err != nil { // it may wait for the file to be read
		return nil, err
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	e, err := r.look(name)
	if err != nil {
		return nil, err
	}
	stored, err := r.versions(e)
	if err != nil {
		return nil, err
	}
	out := make([]Version, len(stored))
	for i, v := range stored {
		out[i] = v.version(e)
	}
	return out, nil
}

// Current returns the version of a model's file. The model must be Ready. It returns
// ErrName, ErrUnknown and ErrBroken, wrapped.
func (r *Folder) Current(ctx context.Context, name string) (Version, error) {
	list, err := r.Versions(ctx, name)
	if err != nil {
		return Version{}, err
	}
	for _, v := range list {
		if v.Current {
			return v, nil
		}
	}
	return Version{}, fmt.Errorf("%w: %s has not been read", ErrBroken, name)
}

func (v storedVersion) version(current Entry) Version {
	out := v.Version
	out.Current, out.Scores, out.Since = v.SHA256 == current.SHA256, v.Scores, v.Since
	return out
}

// versions returns the versions of a model whose files exist, the newest first. A current
// file that versions.json does not have is the newest: it was copied into the folder, or
// stored by an earlier version of the program. The caller has the lock writing.
func (r *Folder) versions(e Entry) ([]storedVersion, error) {
	list, err := r.readVersions(e)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	found := slices.DeleteFunc(list, func(v storedVersion) bool {
		if !validSHA256.MatchString(v.SHA256) || seen[v.SHA256] {
			return true
		}
		seen[v.SHA256] = true
		if v.SHA256 == e.SHA256 {
			return false
		}
		info, err := os.Lstat(r.versionPath(e.Name, v.SHA256))
		return errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular()
	})
	if e.SHA256 != "" && !seen[e.SHA256] {
		v := storedVersion{Version: Version{SHA256: e.SHA256, CreatedAt: e.Modified, Reason: copiedReason}, Scores: e.SHA256, Since: e.Modified, Bytes: e.Bytes}
		if e.Metadata != nil {
			_, v.Threshold = e.Metadata.Measure()
		}
		found = slices.Insert(found, 0, v)
	}
	return found, nil
}

// readVersions reads versions.json. It replaces a damaged one by a list that
// is made from the files of the versions. An error of the disk is returned: Put must not take the versions for none
// and remove their files.
func (r *Folder) readVersions(e Entry) ([]storedVersion, error) {
	path := filepath.Join(r.Path(e.Name), versionsFile)
	data, err := files.ReadAtMost(path, maxVersionsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	var read struct{ Versions []storedVersion }
	if len(data) > maxVersionsFile {
		err = fmt.Errorf("it has more than %d bytes", maxVersionsFile)
	} else {
		err = json.Unmarshal(data, &read)
	}
	if err == nil {
		return read.Versions, nil
	}
	r.log.Warn("the list of a model's versions is damaged and is made anew from their files", slog.String("file", path), slog.Any("error", err))
	list, err := r.recoverVersions(e.Name)
	if err != nil {
		return nil, err
	}
	return list, r.writeVersions(e.Name, list)
}

// recoverVersions returns a version for each file of one, the newest first. Reasons are
// lost.
func (r *Folder) recoverVersions(name string) ([]storedVersion, error) {
	dir := filepath.Join(r.Path(name), versionsDir)
	found, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("registry: %w", err)
	}
	var list []storedVersion
	for _, f := range found {
		info, err := f.Info()
		if err != nil || !info.Mode().IsRegular() || !validSHA256.MatchString(f.Name()) {
			continue
		}
		data, err := files.ReadAtMost(filepath.Join(dir, f.Name()), r.limits.MaxBytes)
		if err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		m, err := models.Read(data, r.limits)
		if err != nil || m.SHA256 != f.Name() {
			continue // not a version of this program
		}
		at := info.ModTime().UTC()
		v := storedVersion{Version: Version{SHA256: m.SHA256, CreatedAt: at, Reason: copiedReason}, Scores: m.SHA256, Since: at, Bytes: int64(len(data))}
		_, v.Threshold = m.Metadata.Measure()
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b storedVersion) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return list, nil
}

// writeVersions writes versions.json.
func (r *Folder) writeVersions(name string, list []storedVersion) error {
	data, err := encodeVersions(list)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(r.Path(name), versionsFile), data)
}

func encodeVersions(list []storedVersion) ([]byte, error) {
	data, err := json.MarshalIndent(map[string]any{"versions": list}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return append(data, '\n'), nil
}

func (r *Folder) versionPath(name, sha256 string) string {
	return filepath.Join(r.Path(name), versionsDir, sha256)
}

// VersionBytes returns the file of a version. It returns ErrName, ErrUnknown and
// ErrNoVersion, wrapped.
func (r *Folder) VersionBytes(_ context.Context, name, sha256 string) (Version, []byte, error) {
	if _, err := r.look(name); err != nil { // it may wait for the file to be read
		return Version{}, nil, err
	}
	missing := fmt.Errorf("%w of %s: %.80q; GET /models/%s/versions lists them", ErrNoVersion, name, sha256, name)
	if !validSHA256.MatchString(sha256) {
		return Version{}, nil, missing
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	e, err := r.look(name)
	if err != nil {
		return Version{}, nil, err
	}
	list, err := r.versions(e)
	if err != nil {
		return Version{}, nil, err
	}
	i := slices.IndexFunc(list, func(v storedVersion) bool { return v.SHA256 == sha256 })
	if i < 0 {
		return Version{}, nil, missing
	}
	path := r.versionPath(name, sha256)
	if sha256 == e.SHA256 {
		path = filepath.Join(r.dir, e.file)
	}
	data, err := files.ReadAtMost(path, r.limits.MaxBytes)
	if errors.Is(err, fs.ErrNotExist) || err == nil && models.Identity(data) != sha256 {
		return Version{}, nil, missing
	}
	if err != nil {
		return Version{}, nil, fmt.Errorf("registry: %w", err)
	}
	return list[i].version(e), data, nil
}

// keep stores the current file of a model as a version, before another replaces it. The
// caller has the lock writing. It returns the model's versions.
func (r *Folder) keep(e Entry, name string) ([]storedVersion, error) {
	if e.State == Loading {
		if m, size, err := r.read(e.file); err == nil {
			e.describe(m, size)
		}
	}
	if e.State != Ready { // nothing that can be restored
		e.Name, e.SHA256 = name, ""
		return r.versions(e)
	}
	path := r.versionPath(e.Name, e.SHA256)
	if _, err := os.Lstat(path); err == nil {
		return r.versions(e)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	current := filepath.Join(r.dir, e.file)
	// Only Put writes the files with storedEnding, and never into an existing one, so that
	// a link is enough. A user may change a file that he copied into the folder.
	if filepath.Ext(e.file) == storedEnding {
		if info, err := os.Lstat(current); err == nil && info.Mode().IsRegular() && os.Link(current, path) == nil {
			return r.versions(e)
		}
	}
	data, err := r.bytes(e.file)
	if err != nil || models.Identity(data) != e.SHA256 {
		r.log.Warn("the current version of a model was changed on the disk and is not kept", slog.String("name", e.Name), slog.Any("error", err))
		e.SHA256 = ""
		return r.versions(e)
	}
	if err := writeFile(path, data); err != nil {
		return nil, err
	}
	return r.versions(e)
}

func writeFile(path string, data []byte) error {
	err := files.WriteAtomic(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

// recordVersion writes versions.json with a new version, and returns it with those before that
// are kept: at most MaxVersions, of at most VersionBytes together. The new one is kept in
// any case.
func (r *Folder) recordVersion(name string, v storedVersion, before []storedVersion) ([]storedVersion, error) {
	kept := []storedVersion{v}
	total := v.Bytes
	for _, old := range before {
		if old.SHA256 == v.SHA256 {
			continue
		}
		total += old.Bytes
		if len(kept) >= r.options.MaxVersions || total > r.options.VersionBytes {
			break
		}
		kept = append(kept, old)
	}
	// A longer list could not be read again.
	for data, err := encodeVersions(kept); len(data) > maxVersionsFile && len(kept) > 1; data, err = encodeVersions(kept) {
		if err != nil {
			return nil, err
		}
		kept = kept[:len(kept)-1]
	}
	return kept, r.writeVersions(name, kept)
}

// prune removes the files of versions that are not kept. A file that cannot be removed
// is only worth a warning.
func (r *Folder) prune(name string, kept []storedVersion) {
	dir := filepath.Join(r.Path(name), versionsDir)
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("cannot remove the earlier versions of a model", slog.String("name", name), slog.Any("error", err))
	}
	for _, f := range list {
		// The first of kept is the current file.
		if slices.ContainsFunc(kept[1:], func(v storedVersion) bool { return v.SHA256 == f.Name() }) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
			r.log.Warn("cannot remove an earlier version of a model", slog.String("name", name), slog.Any("error", err))
		}
	}
}

// deleteHistory removes the folder of a model. It renames the folder first, so that a
// crash leaves all of it or nothing that a later model of the name could find.
func (r *Folder) deleteHistory(name string) error {
	from := r.Path(name)
	to := filepath.Join(filepath.Dir(from), deletedPrefix+name)
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	if err := os.Rename(from, to); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("registry: %w", err)
	}
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	_ = os.Remove(filepath.Dir(from)) // fails unless it is empty
	return nil
}
