package dataset

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

func TestJoinSources_KeepsTheLimits(t *testing.T) {
	lim := DefaultLimits()
	zipped := zipSource(t, testkit.Tiles(t, 3))
	single, err := OpenFiles([]string{testkit.NormalTiles(t) + "/nowhere.jpg"}, lim)
	if err != nil {
		t.Fatal(err)
	}
	joined, err := JoinSources([]*Source{zipped, single, tileFolder(t)}, lim)
	if err != nil || joined.Images() != 3+1+tileFolder(t).Images() || joined.packed != 0 {
		t.Errorf("%d images, %d bytes packed, %v", joined.Images(), joined.packed, err)
	}
	if joined, err = JoinSources([]*Source{zipped, zipped}, lim); err != nil || joined.packed != 2*zipped.packed {
		t.Errorf("%d bytes packed, %v", joined.packed, err)
	}
	lim.Entries = 3
	if _, err := JoinSources([]*Source{zipped, single}, lim); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if _, err := OpenFiles(make([]string, 4), lim); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
}

func TestLoad_IsIdenticalFromFolderAndZip(t *testing.T) {
	files := testkit.Tiles(t, 20)
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	src, err := OpenFolder(dir, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Size: models.Square(32), Limits: DefaultLimits(), Images: imageLimits}
	a, err := Load(t.Context(), src, o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Load(t.Context(), zipSource(t, files), o)
	if err != nil {
		t.Fatal(err)
	}
	if a.Len() != len(files) || !slices.EqualFunc(images(t, a), images(t, b), bytes.Equal) {
		t.Errorf("%d and %d images, or they differ", a.Len(), b.Len())
	}
	if _, err := OpenFolder(testkit.NormalTiles(t)+"/nothing", DefaultLimits()); err == nil || strings.Contains(err.Error(), "panic") {
		t.Errorf("a missing folder: %v", err)
	}
}
