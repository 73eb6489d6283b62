package imagefile

import (
	"bytes"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// goldenDir holds the inputs of the tests, and in expected Pillow's results.
const goldenDir = "../../testdata/golden/images"

// golden is Pillow's result for one input at one size.
type golden struct {
	input string
	w, h  int
	pix   []byte
}

// options returns those of the expectation.
func (g golden) options() Options { return Options{Upright: strings.HasPrefix(g.input, "upright")} }

var goldenName = regexp.MustCompile(`^(.+)\.(\d+)x(\d+)\.png$`)

// goldens reads the results of make_images.py.
func goldens(t testing.TB) []golden {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(goldenDir, "expected", "*.png"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens in %s: %v", goldenDir, err)
	}
	var gs []golden
	for _, f := range files {
		m := goldenName.FindStringSubmatch(filepath.Base(f))
		if m == nil {
			t.Fatalf("%s is not the name of a golden file", f)
		}
		g := golden{input: m[1]}
		g.w, _ = strconv.Atoi(m[2])
		g.h, _ = strconv.Atoi(m[3])
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if b := img.Bounds(); b.Dx() != g.w || b.Dy() != g.h {
			t.Fatalf("%s is %v", f, b)
		}
		// The files are 8-bit RGB, also for grey images.
		for y := range g.h {
			for x := range g.w {
				r, gr, b, _ := img.At(x, y).RGBA()
				g.pix = append(g.pix, byte(r>>8), byte(gr>>8), byte(b>>8))
			}
		}
		gs = append(gs, g)
	}
	return gs
}

func readInput(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(goldenDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// difference returns the largest and the mean difference of two images, and the share
// of values that differ by more than 1.
func difference(a, b []byte) (largest int, mean, above1 float64) {
	for i := range a {
		d := int(a[i]) - int(b[i])
		d = max(d, -d)
		largest = max(largest, d)
		mean += float64(d)
		if d > 1 {
			above1++
		}
	}
	n := float64(len(a))
	return largest, mean / n, above1 / n
}

// bound returns the largest accepted difference from Pillow, of 255: 0 for lossless
// formats and WebP. Go's inverse transform of JPEG rounds differently: luma differs by
// 1, and the colour conversion multiplies a difference in chroma by up to 1.8. Over
// images of 611×403 pixels in all samplings the mean difference was 0.02 to 0.05, under
// 1% of the values differed by more than 1, about 0.01% by more than 2, and none by
// more than 3; resized to 256×256, under 0.05% differed by more than 1.
func bound(name string) int {
	if strings.HasSuffix(name, ".jpg") {
		return 3
	}
	return 0
}

// maxAbove1 is the largest accepted share of a JPEG's values that differ by more than 1.
const maxAbove1 = 0.02

// exempt are the inputs that are decoded differently from Pillow, with the reason.
var exempt = map[string]string{
	"grey16.png": "16-bit grey is scaled, where Pillow clips",
	"grey16.tif": "16-bit grey is scaled, where Pillow clips",
}

func TestResize_MatchesPillow(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(fmt.Sprintf("%s/%dx%d", g.input, g.w, g.h), func(t *testing.T) {
			if why, ok := exempt[g.input]; ok {
				t.Skip(why)
			}
			img, err := Decode(readInput(t, g.input), g.options())
			if err != nil {
				t.Fatal(err)
			}
			got := img.Resize(g.w, g.h)
			if len(got.Pix) != len(g.pix) {
				t.Fatalf("%d bytes, expected %d", len(got.Pix), len(g.pix))
			}
			largest, mean, above1 := difference(got.Pix, g.pix)
			if largest > 0 {
				t.Logf("largest %d, mean %.4f, %.2f%% above 1", largest, mean, 100*above1)
			}
			if largest > bound(g.input) || above1 > maxAbove1 {
				t.Errorf("differs from Pillow by up to %d (%.2f%% by more than 1), expected at most %d",
					largest, 100*above1, bound(g.input))
			}
		})
	}
}
