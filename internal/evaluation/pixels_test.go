package evaluation

import (
	"encoding/json"
	"errors"
	"image"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
	"github.com/disintegration/imaging"
)

// The expected metrics were computed with scikit-learn and scipy by
// testdata/golden/make_pixels.py.
func TestPixelFigures_MatchReference(t *testing.T) {
	data, err := os.ReadFile("../../testdata/golden/pixels.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Side, Width, Height int
		Good                [][]float32
		Bad                 []struct {
			Values []float32
			Mask   string
		}
		PixelFigures
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		good, bad := &pixelMap{}, &pixelMap{}
		for _, values := range c.Good {
			good.add(values, models.FrameOf(models.Square(c.Side), "", c.Width, c.Height), nil)
		}
		for _, b := range c.Bad {
			one := &pixelMap{}
			one.add(b.Values, models.FrameOf(models.Square(c.Side), "", c.Width, c.Height), maskOf(b.Mask, c.Width))
			bad.join(one)
		}
		good.sort()
		bad.sort()
		got := pixelFigures(good, bad)
		if math.Abs(got.AUROC-c.AUROC) > 1e-9 || math.Abs(got.PRO-c.PRO) > 1e-9 || got.Regions != c.Regions {
			t.Errorf("case %d: %+v, expected %+v", i, got, c.PixelFigures)
		}
	}
	if len(cases) != 5 {
		t.Errorf("%d cases", len(cases))
	}
}

// maskOf returns a mask from its pixels, row by row; 1 is a defect.
func maskOf(pixels string, width int) *mask {
	defective := make([]bool, len(pixels))
	for i, p := range pixels {
		defective[i] = p == '1'
	}
	return newMask(defective, width, len(pixels)/width)
}

func TestPixelFigures_MatchHandComputedCases(t *testing.T) {
	row := func(values ...float32) []float32 { // for an image that is one pixel high
		side := len(values)
		out := make([]float32, side*side)
		copy(out[side/2*side:], values)
		return out
	}
	for name, c := range map[string]struct {
		side, width int
		values      []float32
		mask        string
		want        PixelFigures
	}{
		"found first":    {2, 2, []float32{1, 0, 0, 0}, "1000", PixelFigures{1, 1, 1}},
		"found last":     {2, 2, []float32{0, 1, 1, 1}, "1000", PixelFigures{0, 0, 1}},
		"all alike":      {2, 2, []float32{3, 3, 3, 3}, "1000", PixelFigures{0.5, 0.15, 1}},
		"regions alike":  {4, 4, []float32{2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0}, "1110000000000001", PixelFigures{0.75, 0.5, 2}},
		"corners touch":  {2, 2, []float32{1, 0, 0, 1}, "1001", PixelFigures{1, 1, 1}},
		"across a limit": {11, 11, row(2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1), "00000100000", PixelFigures{0.4, 0.1 * 0.0625 / 0.3, 1}},
		// One element covers four pixels, one of them defective: all have the same value.
		"coarse map": {1, 2, []float32{5}, "0100", PixelFigures{0.5, 0.15, 1}},
		// The centres of a row's two pixels are in the first and last of three elements.
		"odd sizes": {3, 2, []float32{9, 5, 0, 5, 5, 5, 9, 5, 0}, "1000", PixelFigures{2.5 / 3, 0.45, 1}},
	} {
		bad := &pixelMap{}
		bad.add(c.values, models.FrameOf(models.Square(c.side), "", c.width, len(c.mask)/c.width), maskOf(c.mask, c.width))
		bad.sort()
		got := pixelFigures(&pixelMap{}, bad)
		if math.Abs(got.AUROC-c.want.AUROC) > 1e-12 || math.Abs(got.PRO-c.want.PRO) > 1e-12 || got.Regions != c.want.Regions {
			t.Errorf("%s: %+v, expected %+v", name, got, c.want)
		}
	}
}

// save writes a black image that is white from column white on.
func save(t *testing.T, file string, width, height, white int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	img := imaging.New(width, height, color.Black)
	img = imaging.Paste(img, imaging.New(max(width-white, 0), height, color.White), image.Pt(white, 0))
	if err := imaging.Save(img, file); err != nil {
		t.Fatal(err)
	}
}

func TestOpen_FindsMasksByMVTecNames(t *testing.T) {
	dir := t.TempDir()
	save(t, filepath.Join(dir, "test/good/0.png"), 8, 8, 8)
	save(t, filepath.Join(dir, "test/hole/a.png"), 8, 8, 8)
	save(t, filepath.Join(dir, "test/hole/b.jpg"), 8, 8, 8)
	save(t, filepath.Join(dir, "test/crack/a.png"), 8, 8, 8)
	open := func() *Set {
		t.Helper()
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := open(); s.Masked() {
		t.Errorf("unexpected masks: %+v", s)
	}
	truth := filepath.Join(dir, "ground_truth/hole")
	save(t, filepath.Join(truth, "a_mask.png"), 8, 8, 4)
	if _, err := Open(dir); !errors.Is(err, ErrMask) || !strings.Contains(err.Error(), "b.jpg") {
		t.Errorf("one mask is missing: %v", err)
	}
	save(t, filepath.Join(truth, "b.png"), 8, 8, 4)
	s := open()
	if got := s.Defects[1].Masks; s.Defects[0].Masks != nil || len(got) != 2 || filepath.Base(got[0]) != "a_mask.png" || filepath.Base(got[1]) != "b.png" {
		t.Errorf("%+v", s.Defects)
	}
	m, err := readMask(s.Defects[1].Masks[0], 8, 8, imagefile.Options{})
	if err != nil || len(m.sizes) != 1 || m.sizes[0] != 32 || m.region[3] != 0 || m.region[4] != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := readMask(s.Defects[1].Masks[0], 8, 9, imagefile.Options{}); !errors.Is(err, ErrMask) {
		t.Errorf("a mask of another size: %v", err)
	}
}

// The masks are drawn first at the maximum of the model's anomaly map and then at its
// minimum.
func TestEvaluate_ComparesMapsWithMasks(t *testing.T) {
	d := tilesDetector(t)
	dir := t.TempDir()
	for _, f := range []string{"train", "test"} {
		if err := os.CopyFS(filepath.Join(dir, f), os.DirFS(filepath.Join(tiles, f))); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all [2]*Result
	for i, highest := range []bool{true, false} {
		for _, file := range s.Defects[0].Files { // the blowholes
			drawMask(t, d, file, highest)
		}
		masked, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if all[i], err = Evaluate(t.Context(), d, masked, 2); err != nil {
			t.Fatal(err)
		}
	}
	high, low := all[0], all[1]
	if high.Defects[1].Pixels != nil || high.Mean.Pixels == nil || *high.Mean.Pixels != *high.Defects[0].Pixels || high.Defects[0].Pixels.Regions < 10 {
		t.Errorf("%+v and %+v", high.Defects, high.Mean.Pixels)
	}
	// The map's peak is smaller than the box.
	if p := high.Mean.Pixels; p.AUROC < 0.9 || p.PRO < 0.7 {
		t.Errorf("masks where the map is highest: %+v", *p)
	}
	if p := low.Mean.Pixels; p.AUROC > 0.5 || p.PRO > 0.15 {
		t.Errorf("masks where the map is lowest: %+v", *p)
	}
	var page strings.Builder
	if err := WriteReport(&page, Report{Title: "tiles", Result: high, Metadata: d.Model().Metadata}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(page.String(), "PRO") {
		t.Error("the report has no localization metrics")
	}
}

// drawMask writes a mask for an image: a box around the maximum or minimum of its
// anomaly map.
func drawMask(t *testing.T, d *inference.Detector, file string, highest bool) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	img, err := imagefile.Decode(data, imagefile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	values, _, err := d.Map(t.Context(), img.Resize(d.Size().W, d.Size().W).Pix)
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for i, v := range values {
		if (v > values[at]) == highest && v != values[at] {
			at = i
		}
	}
	x, y := at%d.Size().W*img.W/d.Size().W, at/d.Size().W*img.H/d.Size().W
	mask := imaging.New(img.W, img.H, color.Black)
	mask = imaging.Paste(mask, imaging.New(img.W/16, img.H/16, color.White), image.Pt(max(x-img.W/32, 0), max(y-img.H/32, 0)))
	defect := filepath.Base(filepath.Dir(file))
	name := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)) + "_mask.png"
	out := filepath.Join(filepath.Dir(file), "../..", truthFolder, defect, name)
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := imaging.Save(mask, out); err != nil {
		t.Fatal(err)
	}
}
