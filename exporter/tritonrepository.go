package exporter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/deepmed/anomaly/internal/files"
)

// Files of an entry of a Triton model repository.
const (
	tritonConfigFile = "config.pbtxt"
	tritonVersion    = "1"
	tritonModelFile  = "model.onnx"
)

var (
	// ErrTritonEntryExists is returned, wrapped, when a repository has an entry of
	// that name and it may not be replaced.
	ErrTritonEntryExists = errors.New("it exists already")
	// ErrNotTritonEntry is returned, wrapped, when a file, or a folder without
	// config.pbtxt, has the name of an entry. It is never replaced.
	ErrNotTritonEntry = errors.New("it holds no " + tritonConfigFile + ", so it is not an entry of a model repository and is kept")
)

// WriteTritonRepository writes entries into the Triton model repository dir, which
// it makes if needed. It writes all of them or none.
//
// It returns ErrTritonEntryExists when an entry exists and replace is false, and
// ErrNotTritonEntry when something else has the name of an entry. Other errors come
// from the file system. If a failure cannot be undone, the error names the folder
// that holds the previous entries.
func WriteTritonRepository(dir string, entries []TritonEntry, replace bool) (err error) {
	for _, e := range entries {
		if err := checkTritonPlace(filepath.Join(dir, e.Name), replace); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// The temporary folder is in the repository, so that it is on the same file
	// system and a rename suffices to move a whole entry.
	tmp, err := os.MkdirTemp(dir, ".anomaly-*")
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		if !keep {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	fresh, replaced := filepath.Join(tmp, "new"), filepath.Join(tmp, "replaced")
	if err := os.Mkdir(replaced, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		if err := writeTritonEntry(filepath.Join(fresh, e.Name), e); err != nil {
			return err
		}
	}
	var undo []func() error
	move := func(from, to string) error {
		err := os.Rename(from, to)
		if err == nil {
			undo = append(undo, func() error { return os.Rename(to, from) })
		}
		return err
	}
	for _, e := range entries {
		target := filepath.Join(dir, e.Name)
		if _, statErr := os.Lstat(target); statErr == nil {
			err = move(target, filepath.Join(replaced, e.Name))
		}
		if err == nil {
			err = move(filepath.Join(fresh, e.Name), target)
		}
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				if stuck := undo[i](); stuck != nil {
					keep = true // it holds the previous entries
					return fmt.Errorf("%w; the previous entries could not be restored and are in %s: %w", err, replaced, stuck)
				}
			}
			return err
		}
	}
	return nil
}

func writeTritonEntry(dir string, e TritonEntry) error {
	for path, data := range map[string][]byte{
		filepath.Join(dir, tritonConfigFile):               e.Config,
		filepath.Join(dir, tritonVersion, tritonModelFile): e.Model,
	} {
		if err := files.WriteAtomic(path, func(w io.Writer) error { _, err := w.Write(data); return err }); err != nil {
			return err
		}
	}
	return nil
}

// checkTritonPlace returns an error unless an entry may be placed at path.
func checkTritonPlace(path string, replace bool) error {
	switch _, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !replace:
		return fmt.Errorf("%s: %w", path, ErrTritonEntryExists)
	}
	if _, err := os.Stat(filepath.Join(path, tritonConfigFile)); err != nil {
		return fmt.Errorf("%s: %w", path, ErrNotTritonEntry)
	}
	return nil
}
