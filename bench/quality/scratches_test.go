package main

import (
	"bytes"
	"image"
	_ "image/jpeg"
	"image/png"
	"os"
	"path/filepath"
	"testing"
)

func TestScratches_AreTheSameForTheSameSeed(t *testing.T) {
	p := photos{train: 1, good: 1, defects: 2, width: 300, height: 200, seed: 7}
	var files [2]map[string][]byte
	for i := range files {
		dir := t.TempDir()
		if err := p.generate(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		files[i] = map[string][]byte{}
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			name, _ := filepath.Rel(dir, path)
			files[i][filepath.ToSlash(name)] = data
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(files[0]) != 6 {
		t.Fatalf("%d files", len(files[0]))
	}
	for name, data := range files[0] {
		if !bytes.Equal(data, files[1][name]) {
			t.Errorf("%s differs", name)
		}
		c, _, err := image.DecodeConfig(bytes.NewReader(data))
		if err != nil || c.Width != 300 || c.Height != 200 {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	mask, err := png.Decode(bytes.NewReader(files[0]["ground_truth/scratch/000_mask.png"]))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, v := range mask.(*image.Gray).Pix {
		if v > 0 {
			n++
		}
	}
	// An ellipse of the shortest and of the longest scratch.
	if n < narrowest*narrowest*shortest/2 || n > widest*widest*longest {
		t.Errorf("a scratch of %d pixels", n)
	}
}
