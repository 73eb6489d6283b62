package main

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// wavePNG returns an image of 12 bits in 16 or of 8 bits, with a bright patch or without.
func wavePNG(t testing.TB, w, h, seed int, deep, defective bool) []byte {
	t.Helper()
	shallow, whole := image.NewGray(image.Rect(0, 0, w, h)), image.NewGray16(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			v := 0.5 + 0.3*math.Sin(float64(x)/9+float64(seed)/7)*math.Cos(float64(y)/7) + 0.02*math.Sin(float64(x*y*(seed+1)))
			if defective && x > w/4 && x < w/2 && y > h/4 && y < h/2 {
				v = 0.95
			}
			shallow.SetGray(x, y, color.Gray{Y: uint8(255 * v)})
			whole.SetGray16(x, y, color.Gray16{Y: uint16(4095 * v)})
		}
	}
	if deep {
		return encoded(t, whole)
	}
	return encoded(t, shallow)
}

// The command line, predict.py and verify must agree about models with each kind of
// preparation, on images of other shapes than those of the training.
func TestTrain_PreparesImagesAsPredictDoes(t *testing.T) {
	python(t) // skips the test without Python, before the trainings
	mask := image.NewGray(image.Rect(0, 0, 40, 20))
	for i := range mask.Pix {
		if x, y := i%40, i/40; x > 4 && x < 34 && y > 2 {
			mask.Pix[i] = 1
		}
	}
	roi := write(t, t.TempDir(), "roi.png", encoded(t, mask))
	for name, c := range map[string]struct {
		deep  bool
		flags []string
		check func(m *models.Model) bool
	}{
		"oblong":        {false, []string{"--image-size", "64x32"}, func(m *models.Model) bool { return m.Input() == models.Size{W: 64, H: 32} && m.ImageSize == 0 }},
		"padded region": {false, []string{"--image-size", "48", "--fit", "pad", "--roi", roi}, func(m *models.Model) bool { return m.Masked() && m.Metadata.Preprocessing.Region.Share() < 0.7 }},
		"deep": {true, []string{"--image-size", "32x48", "--fit", "crop", "--roi", "0.1,0.1,0.8,0.8"}, func(m *models.Model) bool {
			w := m.Metadata.Preprocessing.Window
			return w != nil && w[0] >= 0 && w[0] < 900 && w[1] > 3200 && w[1] < 4400
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for i := range 10 {
				write(t, dir, fmt.Sprintf("%d.png", i), wavePNG(t, 80, 40, i, c.deep, false))
			}
			model := filepath.Join(t.TempDir(), "m.zip")
			if r := run(t, append([]string{"train", dir, "--level", "1", "--quiet", "--out", model}, c.flags...)...); r.status != 0 {
				t.Fatal(r.stderr)
			}
			data, err := os.ReadFile(model)
			if err != nil {
				t.Fatal(err)
			}
			m, err := models.Read(data, models.Limits{})
			if err != nil || !c.check(m) || m.Metadata.FormatVersion != models.FramedFormatVersion {
				t.Fatalf("%+v, %v", m, err)
			}
			var images []string
			for i, size := range [][2]int{{80, 40}, {40, 90}, {200, 60}, {33, 31}} {
				images = append(images, write(t, t.TempDir(), fmt.Sprintf("%d.png", i), wavePNG(t, size[0], size[1], i, c.deep, true)))
			}
			samePredictions(t, model, images, 1e-4)
			if r := run(t, append([]string{"verify", model}, images[:1]...)...); r.status != 0 || !strings.Contains(r.stdout, "agrees") {
				t.Errorf("verify: %d, %s%s", r.status, r.stdout, r.stderr)
			}
			if r := run(t, "inspect", model); r.status != 0 || !strings.Contains(r.stdout, m.Input().String()) {
				t.Errorf("inspect: %s%s", r.stdout, r.stderr)
			}
		})
	}
}

func TestTrain_RejectsAnUnusablePreparation(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "1.png", wavePNG(t, 20, 20, 1, false, false))
	black := write(t, t.TempDir(), "black.png", encoded(t, image.NewGray(image.Rect(0, 0, 4, 4))))
	for _, c := range [][]string{
		{"--image-size", "100x64"}, {"--image-size", "64x"}, {"--image-size", "0x64"}, {"--image-size", "64x2048"}, {"--fit", "stretch"}, {"--window", "5"},
		{"--window", "9,2"}, {"--roi", "0.1,0.2,0.3"}, {"--roi", "0.5,0.5,0.6,0.1"}, {"--roi", black}, {"--roi", filepath.Join(dir, "none.png")},
	} {
		if r := run(t, append([]string{"train", dir, "--out", filepath.Join(t.TempDir(), "m.zip")}, c...)...); r.status != exitError || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%v: %d, %s", c, r.status, r.stderr)
		}
	}
}

// Images that differ outside of the region alone must train the same model, whatever else is
// learned from an image.
func TestTrain_LearnsNothingFromOutsideOfTheRegion(t *testing.T) {
	var models [2][]byte
	for k := range models {
		dir, out := t.TempDir(), filepath.Join(t.TempDir(), "m.pt")
		for i := range 9 {
			m := image.NewGray(image.Rect(0, 0, 80, 40))
			for p := range m.Pix {
				x, y := p%80, p/80
				if m.Pix[p] = uint8(120 + 60*math.Sin(float64(x*(i+3))/15)*math.Cos(float64(y)/5)); x >= 56 {
					m.Pix[p] = uint8(k * (97*i + x*y))
				}
			}
			write(t, dir, fmt.Sprintf("%d.png", i), encoded(t, m))
		}
		// The mark of the border is after the resize, which reaches over one pixel of the input.
		if r := run(t, "train", dir, "--level", "1", "--image-size", "64x32", "--roi", "0,0,0.6,1", "--quiet", "--out", out); r.status != 0 {
			t.Fatal(r.stderr)
		}
		models[k] = read(t, out)
	}
	if !bytes.Equal(models[0], models[1]) {
		t.Error("what is outside of the region changes the model")
	}
}
