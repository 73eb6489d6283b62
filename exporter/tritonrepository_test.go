package exporter

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// filesBelow returns the files below a folder and their contents, and the names of
// the folders directly in it with the content "folder".
func filesBelow(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if path != "." && !strings.Contains(path, "/") {
				found[path] = "folder"
			}
			return nil
		}
		data, err := os.ReadFile(filepath.Join(dir, path))
		found[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func placeFile(t *testing.T, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWriteTritonRepository_ReplacesEntriesOnlyWhenAllowed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "models")
	entries := []TritonEntry{{Name: "a", Config: []byte("config a"), Model: []byte("model a")}, {Name: "b", Config: []byte("config b"), Model: []byte("model b")}}
	if err := WriteTritonRepository(dir, entries, false); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"a": "folder", "a/config.pbtxt": "config a", "a/1/model.onnx": "model a",
		"b": "folder", "b/config.pbtxt": "config b", "b/1/model.onnx": "model b",
	}
	if got := filesBelow(t, dir); !maps.Equal(got, want) {
		t.Errorf("the repository holds %v", got)
	}
	placeFile(t, filepath.Join(dir, "b", "notes.txt"), "mine")
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	before := filesBelow(t, dir)
	if err := WriteTritonRepository(dir, entries, false); !errors.Is(err, ErrTritonEntryExists) {
		t.Errorf("without replace: %v", err)
	}
	if got := filesBelow(t, dir); !maps.Equal(got, before) {
		t.Errorf("the repository was changed to %v", got)
	}
	if err := WriteTritonRepository(dir, entries, true); err != nil {
		t.Fatal(err)
	}
	if got := filesBelow(t, dir); !maps.Equal(got, want) {
		t.Errorf("with replace the repository holds %v", got)
	}
}

func TestWriteTritonRepository_KeepsWhatIsNoEntry(t *testing.T) {
	dir := t.TempDir()
	placeFile(t, filepath.Join(dir, "folder", "letter.txt"), "dear")
	placeFile(t, filepath.Join(dir, "file"), "dear")
	before := filesBelow(t, dir)
	for _, name := range []string{"folder", "file"} {
		err := WriteTritonRepository(dir, []TritonEntry{{Name: "new"}, {Name: name}}, true)
		if !errors.Is(err, ErrNotTritonEntry) {
			t.Errorf("%s: %v", name, err)
		}
		if got := filesBelow(t, dir); !maps.Equal(got, before) {
			t.Errorf("%s: the repository was changed to %v", name, got)
		}
	}
}

func TestWriteTritonRepository_RestoresEntriesWhenOneCannotBePlaced(t *testing.T) {
	dir := t.TempDir()
	placeFile(t, filepath.Join(dir, "a", "config.pbtxt"), "old")
	before := filesBelow(t, dir)
	entries := []TritonEntry{ // the folder of the second does not exist
		{Name: "a", Config: []byte("new"), Model: []byte("model")}, {Name: "nowhere/b", Config: []byte("new"), Model: []byte("model")},
	}
	if err := WriteTritonRepository(dir, entries, true); err == nil || !strings.Contains(err.Error(), "nowhere/b") {
		t.Errorf("%v", err)
	}
	if got := filesBelow(t, dir); !maps.Equal(got, before) {
		t.Errorf("the repository holds %v", got)
	}
}
