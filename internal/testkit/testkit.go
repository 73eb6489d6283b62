// Package testkit holds what tests of several packages share: where the test data is,
// the real images in it, and zips of them. Only tests may import it.
package testkit

import (
	"archive/zip"
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Root returns the path of the repository: the folder with go.mod at or above the
// working directory, which is the package's folder in a test.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("testkit: no go.mod above the working directory")
		}
		dir = up
	}
}

// NormalTiles returns the folder of the normal tiles.
func NormalTiles(t testing.TB) string {
	t.Helper()
	return filepath.Join(Root(t), "testdata", "tiles", "train", "good")
}

// Tiles returns the first n normal tiles, by file name in the order of the names.
func Tiles(t testing.TB, n int) map[string][]byte {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(NormalTiles(t), "*.jpg"))
	if err != nil || len(list) < n {
		t.Fatalf("testkit: %d tiles, want %d; %v", len(list), n, err)
	}
	files := map[string][]byte{}
	for _, f := range list[:n] {
		if files[filepath.Base(f)], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// Zip returns a zip of the files, in the order of their names.
func Zip(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write(files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
