package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/evaluation"
)

var small = drawing{train: 2, good: 1, defects: 2, side: 96, seed: 7}

// filesBelow returns all files below a folder, by their path.
func filesBelow(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out[p], err = os.ReadFile(filepath.Join(dir, p))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGenerate_IsDeterministic(t *testing.T) {
	draw := func(d drawing) map[string][]byte {
		t.Helper()
		dir := t.TempDir()
		if _, err := generate(t.Context(), dir, d); err != nil {
			t.Fatal(err)
		}
		return filesBelow(t, dir)
	}
	first, again := draw(small), draw(small)
	if want := len(scenes) * (2 + 1 + 2 + 2); len(first) != want || len(again) != want {
		t.Fatalf("%d and %d files, expected %d", len(first), len(again), want)
	}
	for name, data := range first {
		if !bytes.Equal(data, again[name]) {
			t.Errorf("%s differs between runs", name)
		}
	}
	// More images do not change existing ones; another seed does.
	more := small
	more.train, more.defects = 4, 3
	for name, data := range draw(more) {
		if old, ok := first[name]; ok && !bytes.Equal(data, old) {
			t.Errorf("%s changes with the number of images", name)
		}
	}
	other := small
	other.seed++
	for name, data := range draw(other) {
		if bytes.Equal(data, first[name]) {
			t.Errorf("%s is the same for another seed", name)
		}
	}
}

func TestGenerate_WritesDataSetsForEvaluation(t *testing.T) {
	dir := t.TempDir()
	folders, err := generate(t.Context(), dir, small)
	if err != nil {
		t.Fatal(err)
	}
	for i, folder := range folders {
		s, err := evaluation.Open(folder)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Good) != 1 || len(s.Defects) != 1 || s.Defects[0].Name != scenes[i].defect || len(s.Defects[0].Masks) != 2 {
			t.Errorf("%s: %+v", folder, s)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("%v left, %v", left, err)
	}
}

// A defective image differs from the normal one only inside the mask.
func TestScene_MasksTheDefect(t *testing.T) {
	for _, s := range scenes {
		const defects = 8
		differences := make([]float64, 0, defects)
		for i := range defects {
			bad, mask := s.image("test/"+s.defect, i, true, standard)
			good, none := s.image("test/"+s.defect, i, false, standard)
			if none != nil {
				t.Fatalf("%s: a normal image has a mask", s.name)
			}
			var inside, outside, pixels, masked float64
			for k, m := range mask.Pix {
				difference := 0.0
				for c := range 3 {
					difference += max(float64(bad.Pix[4*k+c])-float64(good.Pix[4*k+c]), float64(good.Pix[4*k+c])-float64(bad.Pix[4*k+c])) / 3
				}
				if m > 0 {
					inside, masked = inside+difference, masked+1
				} else {
					outside, pixels = outside+difference, pixels+1
				}
			}
			if masked < 20 || masked > pixels/5 {
				t.Errorf("%s %d: mask of %v pixels", s.name, i, masked)
			}
			if outside/pixels > 0.5 {
				t.Errorf("%s %d: difference of %.2f grey levels outside the mask", s.name, i, outside/pixels)
			}
			differences = append(differences, inside/masked)
		}
		if least := slices.Min(differences); least < 1 {
			t.Errorf("%s: a defect differs by %.2f grey levels: %.1f", s.name, least, differences)
		}
	}
}
