package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// sheet returns a PNG of a rough sheet with dark squares at fixed places, and with a light
// spot of 12 pixels if it is defective.
func sheet(t testing.TB, seed int, defective bool) []byte {
	t.Helper()
	const w, h = 150, 110
	r := rand.New(rand.NewPCG(uint64(seed), 9))
	m := image.NewNRGBA(image.Rect(0, 0, w, h))
	spotX, spotY := 20+r.IntN(w-40), 20+r.IntN(h-40)
	for i := range w * h {
		x, y := i%w, i/w
		v := 120 + 8*r.NormFloat64()
		if (x/17)%4 == 1 && (y/23)%2 == 0 {
			v -= 70
		}
		if dx, dy := x-spotX, y-spotY; defective && dx*dx+dy*dy < 36 {
			v += 100
		}
		for k := range 3 {
			m.Pix[4*i+k] = byte(min(max(v, 0), 255))
		}
		m.Pix[4*i+3] = 255
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sheets writes images of sheets into a folder of a data set.
func sheets(t testing.TB, dir, folder string, n, first int, defective bool) (paths []string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		paths = append(paths, write(t, filepath.Join(dir, folder), fmt.Sprintf("%02d.png", i), sheet(t, first+i, defective)))
	}
	return paths
}

var (
	tiledOnce  sync.Once
	tiledBytes []byte
)

// tiledModel returns a model of tiles with statistics by place, which is trained once.
func tiledModel(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	out := filepath.Join(dir, "tiled.zip")
	tiledOnce.Do(func() {
		sheets(t, dir, "normal", 20, 0, false)
		r := run(t, "train", filepath.Join(dir, "normal"), "--level", "1", "--tile", "64", "--overlap", "16", "--tiles", "places", "--out", out)
		if r.status != exitNormal || !strings.Contains(r.stderr, "scoring tiles") {
			t.Fatal(r.stderr)
		}
		tiledBytes = read(t, out)
	})
	if tiledBytes == nil {
		t.Fatal("the model could not be trained")
	}
	return write(t, dir, "tiled.zip", tiledBytes)
}

func TestTiles_AreTrainedJudgedAndExplained(t *testing.T) {
	model, dir := tiledModel(t), t.TempDir()
	m, err := models.Read(read(t, model), models.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if tiles := m.Tiles(); tiles == nil || tiles.Overlap != 16 || tiles.Columns != 3 || tiles.Rows != 2 || tiles.Statistics != models.TilesByPlace {
		t.Fatalf("tiles %+v", m.Tiles())
	}
	good := sheets(t, dir, "test/good", 5, 100, false)
	bad := sheets(t, dir, "test/spot", 5, 200, true)
	heat := filepath.Join(dir, "heat")
	r := run(t, append([]string{"detect", "--model", model, "--json", "--heatmap", heat}, append(good, bad...)...)...)
	if r.status != exitAnomaly {
		t.Fatalf("exit %d: %s", r.status, r.stderr)
	}
	var verdicts []entry
	if err := json.Unmarshal([]byte(r.stdout), &verdicts); err != nil {
		t.Fatal(err)
	}
	right := 0
	for i, v := range verdicts {
		if *v.IsAnomaly == (i >= len(good)) {
			right++
		}
	}
	if right < 9 {
		t.Errorf("%d of 10 verdicts are right: %s", right, r.stdout)
	}
	for _, name := range names(t, heat) {
		if c, err := png.DecodeConfig(bytes.NewReader(read(t, filepath.Join(heat, name)))); err != nil || c.Width != 150 || c.Height != 110 {
			t.Errorf("%s has %d×%d pixels, %v", name, c.Width, c.Height, err)
		}
	}
	// An image of other places.
	r = run(t, "detect", "--model", model, "--json", write(t, dir, "small.png", png64(t)))
	if r.status != exitError || !strings.Contains(r.stdout, "3×2") {
		t.Errorf("another size: exit %d: %s", r.status, r.stdout)
	}
	calibrated := filepath.Join(dir, "calibrated.pt")
	if r := run(t, "calibrate", model, filepath.Join(dir, "normal2"), "--out", calibrated); r.status != exitError {
		t.Errorf("calibrated on a missing folder: %s", r.stdout)
	}
	sheets(t, dir, "normal2", 9, 300, false)
	if r := run(t, "calibrate", model, filepath.Join(dir, "normal2"), "--out", calibrated); r.status != exitNormal {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	} else if again, err := models.Read(read(t, calibrated), models.Limits{}); err != nil || again.Tiles() == nil || again.Metadata.Decision.Tiles.Count != 6 {
		t.Errorf("%+v, %v", again, err)
	}
	if r := run(t, "evaluate", dir, "--model", model, "--json"); r.status != exitNormal || !strings.Contains(r.stdout, `"tiled_patch_mahalanobis"`) {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	}
	if r := run(t, "verify", model, good[0]); r.status != exitNormal {
		t.Errorf("verify: exit %d: %s %s", r.status, r.stdout, r.stderr)
	}
	if r := run(t, "inspect", model); r.status != exitNormal || !strings.Contains(r.stdout, "tiles") {
		t.Errorf("inspect: exit %d: %s", r.status, r.stdout)
	}
}

// png64 returns a black PNG of 64×64 pixels.
func png64(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 64, 64))); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// predict.py and the programs of the README cut the same tiles and return the same scores.
func TestTiles_AreJudgedByPredictAndTheReadmeAsByDetect(t *testing.T) {
	s := script{interpreter: python(t), dir: unpacked(t, tiledModel(t))}
	dir := t.TempDir()
	images := append(sheets(t, dir, "good", 2, 100, false), sheets(t, dir, "bad", 2, 200, true)...)
	r := run(t, append([]string{"detect", "--model", filepath.Join(s.dir, models.ONNXFile), "--json"}, images...)...)
	var ours, theirs []entry
	if err := json.Unmarshal([]byte(r.stdout), &ours); err != nil {
		t.Fatal(err)
	}
	p := s.run(t, append(images, "--json")...)
	if err := json.Unmarshal([]byte(p.stdout), &theirs); err != nil {
		t.Fatal(p.stderr)
	}
	agree(t, ours, theirs, 1e-3)
	if p.status != expected(theirs) {
		t.Errorf("exit %d, expected %d", p.status, expected(theirs))
	}
	if p := s.run(t, write(t, dir, "small.png", png64(t))); p.status != exitError || !strings.Contains(p.stdout+p.stderr, "3×2") {
		t.Errorf("another size: exit %d: %s %s", p.status, p.stdout, p.stderr)
	}
	// Regions, by the function that returns them for one image.
	out, err := s.python(t, fmt.Sprintf("import sys, json; sys.path.insert(0, %q)\nfrom predict import detect_anomaly\nprint(json.dumps(detect_anomaly(%q)))", s.dir, images[2])).Output()
	if err != nil {
		t.Fatal(err)
	}
	var one struct {
		Regions []struct{ X, Y, Width, Height int }
		Score   float64 `json:"anomaly_score"`
	}
	if err := json.Unmarshal(out, &one); err != nil || math.Abs(one.Score-*ours[2].Value) > 1e-3**ours[2].Value {
		t.Errorf("%s, %v", out, err)
	}
	readme := string(read(t, filepath.Join(s.dir, "README.md")))
	if err := os.WriteFile(filepath.Join(s.dir, "photo.jpg"), read(t, images[2]), 0o600); err != nil { // its content is a PNG
		t.Fatal(err)
	}
	for i, program := range pythonPrograms(readme) {
		c := exec.Command(s.interpreter, "-c", program)
		c.Dir = s.dir
		text, err := c.CombinedOutput()
		var verdict string
		var score float64
		if _, scan := fmt.Sscan(string(text), &verdict, &score); err != nil || scan != nil || math.Abs(score-*ours[2].Value) > 1e-3**ours[2].Value {
			t.Errorf("program %d of the README: %v, %q; expected the score %v", i, err, text, *ours[2].Value)
		}
	}
}

// pythonPrograms returns the Python programs of a README.
func pythonPrograms(readme string) (list []string) {
	for _, part := range strings.Split(readme, "```python\n")[1:] {
		program, _, _ := strings.Cut(part, "```")
		list = append(list, program)
	}
	return list
}

func TestTrain_RefusesTilesThatCannotBeCut(t *testing.T) {
	zipped := write(t, t.TempDir(), "normal.zip", normals(t, 4))
	for words, args := range map[string][]string{
		"multiple of 16 from 64": {"--tile", "72"},
		"overlap by 40":          {"--tile", "64", "--overlap", "40"},
		"a number of pixels":     {"--tile", "64", "--overlap", "-1"},
		"without the side":       {"--overlap", "8"},
		"both an image size":     {"--tile", "64", "--image-size", "64"},
		"at most 8192":           {"--tile", "64", "--longest-side", "9000"},
		`expected "same" or`:     {"--tile", "64", "--tiles", "all"},
		"no fit, no window and":  {"--tile", "64", "--fit", "pad"},
		"trained on at least 8":  {"--tile", "64", "--level", "1"},
	} {
		r := run(t, append([]string{"train", zipped, "--out", filepath.Join(t.TempDir(), "m.zip")}, args...)...)
		if r.status != exitError || !strings.Contains(r.stderr, words) {
			t.Errorf("%v: exit %d: %s; expected %q", args, r.status, r.stderr, words)
		}
	}
	if r := run(t, "evaluate", t.TempDir(), "--model", "m.zip", "--tile", "64"); r.status != exitError || !strings.Contains(r.stderr, "--tile with --model") {
		t.Errorf("tiles of a trained model: exit %d: %s", r.status, r.stderr)
	}
}
