// Package testkit provides test data to the tests of several packages: the path of the
// repository, real images, and ZIP files. Only tests may import it.
package testkit

import (
	"archive/zip"
	"bytes"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Root returns the path of the repository: the first folder with go.mod, from the working
// directory upwards. In a test, the working directory is the package's folder.
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

// NormalTiles returns the path of the folder with the normal tiles.
func NormalTiles(t testing.TB) string {
	t.Helper()
	return filepath.Join(Root(t), "testdata", "tiles", "train", "good")
}

// Tiles returns the content of the first n normal tiles by file name.
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

// Zip returns a ZIP file with the files in the order of their names.
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

// FreePort returns a TCP port of 127.0.0.1 on which nothing listened a moment ago.
func FreePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
