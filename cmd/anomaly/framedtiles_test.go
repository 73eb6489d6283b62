package main

import (
	"fmt"
	"image"
	"image/color"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// faint returns a PNG of 12 bits in 16: a gradient of 40 values with noise of 1 and, if it is
// defective, a bump, in values of 12 bits. A step of 8 bits is 16 of them.
func faint(t testing.TB, seed, w, h int, bump float64) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(seed), 11))
	m := image.NewGray16(image.Rect(0, 0, w, h))
	phase := 2 * math.Pi * r.Float64()
	x0, y0 := 20+r.Float64()*float64(w-40), 20+r.Float64()*float64(h-40)
	for y := range h {
		for x := range w {
			v := 2000 + 20*math.Sin(float64(x)/60+float64(y)/90+phase) + r.NormFloat64()
			dx, dy := float64(x)-x0, float64(y)-y0
			v += bump * math.Exp(-(dx*dx+dy*dy)/(2*6*6))
			m.SetGray16(x, y, color.Gray16{Y: uint16(math.Round(v))})
		}
	}
	return encoded(t, m)
}

// A defect below the resolution of 8 bits is found in tiles of images of 12 bits, and every
// program has the same scores.
func TestTiles_KeepTheDepthOfImages(t *testing.T) {
	dir := t.TempDir()
	model := filepath.Join(t.TempDir(), "m.zip")
	for i := range 14 {
		write(t, mkdir(t, dir, "train/good"), fmt.Sprintf("%02d.png", i), faint(t, i, 164, 110, 0))
	}
	if r := run(t, "train", filepath.Join(dir, "train", "good"), "--level", "1", "--tile", "64", "--tiles", "same", "--quiet", "--out", model); r.status != 0 {
		t.Fatal(r.stderr)
	}
	m, err := models.Read(read(t, model), models.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if w := m.Metadata.Preprocessing.Window; w == nil || w[0] < 1950 || w[1] > 2050 || m.Tiles() == nil || m.Metadata.FormatVersion != models.FramedFormatVersion ||
		!strings.HasSuffix(m.Metadata.Preprocessing.Orientation, "format 2") {
		t.Fatalf("%+v", m.Metadata.Preprocessing)
	}
	var images []string
	for i := range 10 {
		folder := []string{"test/good", "test/bump"}[i/5]
		images = append(images, write(t, mkdir(t, dir, folder), fmt.Sprintf("%d.png", i), faint(t, 100+i, 164, 110, float64(i/5*7))))
	}
	right := 0
	for i, v := range samePredictions(t, model, images, 1e-3) {
		if *v.IsAnomaly == (i >= 5) {
			right++
		}
	}
	if right < 9 {
		t.Errorf("%d of 10 verdicts are right", right)
	}
	// A large image has 15 times as many tiles.
	for _, bump := range []float64{0, 9} {
		large := write(t, t.TempDir(), "large.png", faint(t, 77, 640, 480, bump))
		if v := entries(t, run(t, "detect", "--json", "--model", model, large)); len(v) != 1 || v[0].IsAnomaly == nil || *v[0].IsAnomaly != (bump > 0) {
			t.Errorf("a large image with a bump of %v: %+v", bump, v)
		}
	}
	calibrated := filepath.Join(t.TempDir(), "m.pt")
	if r := run(t, "calibrate", model, filepath.Join(dir, "train", "good"), "--out", calibrated); r.status != 0 {
		t.Errorf("calibrate: %s", r.stderr)
	} else if again, err := models.Read(read(t, calibrated), models.Limits{}); err != nil || again.Metadata.Preprocessing.Window == nil || *again.Metadata.Preprocessing.Window != *m.Metadata.Preprocessing.Window {
		t.Errorf("the window of the calibrated model is another, %v", err)
	}
	if r := run(t, "evaluate", dir, "--model", model, "--json"); r.status != 0 || !strings.Contains(r.stdout, `"tiled_patch_mahalanobis"`) {
		t.Errorf("evaluate: %d, %s%s", r.status, r.stdout, r.stderr)
	}
	if r := run(t, "verify", model, images[0]); r.status != 0 || !strings.Contains(r.stdout, "agrees") {
		t.Errorf("verify: %s%s", r.stdout, r.stderr)
	}
	if readme := string(read(t, filepath.Join(unpacked(t, model), "README.md"))); !strings.Contains(readme, "window of sample values") || strings.Contains(readme, "def starts") {
		t.Error("README.md does not describe the window, or has a program for 8 bits")
	}
}

// mkdir creates a folder in dir and returns its path.
func mkdir(t testing.TB, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// halves returns a PNG of a rough sheet with dark squares at fixed places. Its right half is
// of another seed. A light spot of 12 pixels is at each of the spots, 40.
func halves(t testing.TB, seed, other int, spots ...int) []byte {
	t.Helper()
	const w, h = 150, 80
	left, right := rand.New(rand.NewPCG(uint64(seed), 12)), rand.New(rand.NewPCG(uint64(other), 13))
	m := image.NewGray(image.Rect(0, 0, w, h))
	for i := range m.Pix {
		col, row := i%w, i/w
		a, b := left.NormFloat64(), right.NormFloat64()
		v := 120 + 8*a
		if col >= w/2 {
			v = 120 + 30*b
		}
		if (col/17)%4 == 1 && (row/23)%2 == 0 {
			v -= 70
		}
		for _, spot := range spots {
			if dx, dy := col-spot, row-40; dx*dx+dy*dy < 36 {
				v += 100
			}
		}
		m.Pix[i] = uint8(min(max(v, 0), 255))
	}
	return encoded(t, m)
}

// What is outside of the region changes neither the model of tiles nor a score; a defect inside
// is found, at its place in the image, and every program has the same scores.
func TestTiles_LearnAndJudgeTheRegionAlone(t *testing.T) {
	mask := image.NewGray(image.Rect(0, 0, 22, 14))
	for i := range mask.Pix {
		if i%22 < 11 {
			mask.Pix[i] = 200
		}
	}
	for statistics, roi := range map[string]string{"places": "0,0,0.5,1", "same": write(t, t.TempDir(), "roi.png", encoded(t, mask))} {
		t.Run(statistics, func(t *testing.T) {
			var trained [2]string
			for k := range trained {
				dir := t.TempDir()
				for i := range 12 {
					write(t, dir, fmt.Sprintf("%02d.png", i), halves(t, i, 100*k+i))
				}
				trained[k] = filepath.Join(t.TempDir(), "m.zip")
				args := []string{"train", dir, "--level", "1", "--tile", "64", "--tiles", statistics, "--roi", roi, "--quiet", "--out", trained[k]}
				if r := run(t, args...); r.status != 0 {
					t.Fatal(r.stderr)
				}
			}
			if a, b := unpacked(t, trained[0]), unpacked(t, trained[1]); string(read(t, filepath.Join(a, models.ONNXFile))) != string(read(t, filepath.Join(b, models.ONNXFile))) {
				t.Error("what is outside of the region changes the model")
			}
			m, err := models.Read(read(t, trained[0]), models.Limits{})
			if err != nil || !m.Masked() || m.Metadata.Decision.Tiles.Count != 4 || m.Metadata.FormatVersion != models.FramedFormatVersion {
				t.Fatalf("%+v, %v", m.Metadata.Decision, err) // 2 of 3 columns of tiles, and 2 rows
			}
			var images []string
			for i, spots := range [][]int{nil, {105, 130}, {30}, {55, 130}} {
				images = append(images, write(t, t.TempDir(), fmt.Sprintf("%d.png", i), halves(t, 50+i/2*i, 300+i, spots...)))
			}
			ours := samePredictions(t, trained[0], images, 1e-3)
			if *ours[0].Value != *ours[1].Value || *ours[0].IsAnomaly {
				t.Errorf("images that differ outside of the region: %v and %v, %v", *ours[0].Value, *ours[1].Value, *ours[0].IsAnomaly)
			}
			d, err := inference.NewDetector(orttest.Open(t), m, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			for i, spot := range map[int]int{2: 30, 3: 55} {
				x, err := d.Explain(t.Context(), read(t, images[i]), nil, imagefile.DefaultLimits())
				if err != nil || !*ours[i].IsAnomaly || !x.IsAnomaly || len(x.Regions) == 0 {
					t.Fatalf("a spot inside of the region: %+v, %v", ours[i], err)
				}
				for k, r := range x.Regions {
					if r.X+r.Width > 75 {
						t.Errorf("a box outside of the region: %+v", r)
					}
					if k == 0 && (r.X > spot || r.X+r.Width < spot || r.Y > 40 || r.Y+r.Height < 40) {
						t.Errorf("the first box %+v is not at the spot, %d", r, spot)
					}
				}
			}
		})
	}
}
