package imagefile

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/deepmed/anomaly/models"
)

const deepDir = "../../testdata/golden/deep"

// make_deep.py computes the expectations with NumPy and Pillow.
func TestPrepare_KeepsTheDepthLikeNumPyAndPillow(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(deepDir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		File, Fit, Input string
		Width, Height    int
		Window           models.Window
		Region           *models.Region
	}
	if err := json.Unmarshal(data, &cases); err != nil || len(cases) == 0 {
		t.Fatal(len(cases), err)
	}
	for _, c := range cases {
		file, err := os.ReadFile(filepath.Join(deepDir, c.File))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := base64.StdEncoding.DecodeString(c.Input)
		if err != nil {
			t.Fatal(err)
		}
		size := models.Size{W: c.Width, H: c.Height}
		o := Options{Window: &c.Window, Fit: models.Fit(c.Fit)}.WithRegion(c.Region)
		pixels, err := Prepare(file, size, o)
		if err != nil {
			t.Errorf("%s: %v", c.File, err)
			continue
		}
		got := make([]float32, 3*size.Area())
		Normalize(got, pixels)
		for i, v := range got {
			want := deepAt(raw[deepBytes*(i%size.Area()):])
			if math.Float32bits(v) != math.Float32bits(want) {
				t.Errorf("%s, %v %s: value %d is %v, expected %v", c.File, size, c.Fit, i, v, want)
				break
			}
		}
	}
}

// Without a window, a floating-point image is refused, and an image of 16 bits is the same as
// before.
func TestPrepare_NeedsAWindowForFloatingPoint(t *testing.T) {
	file, err := os.ReadFile(filepath.Join(deepDir, "float.tif"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(file, models.Square(16), Options{}); !errors.Is(err, ErrImage) {
		t.Errorf("error %v", err)
	}
	p, err := PrepareSized(file, models.Square(16), Options{Probe: true})
	if err != nil || !p.Deep || len(p.Values) == 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

// The orientation in EXIF applies to deep images as to others.
func TestPrepare_TurnsDeepImagesUpright(t *testing.T) {
	for orientation := 1; orientation <= 8; orientation++ {
		img := &RGB{W: 3, H: 2, plane: []byte{0, 1, 2, 3, 4, 5}}
		img.samples = ofRGB(&RGB{W: 3, H: 2, plane: []byte{0, 1, 2, 3, 4, 5}})
		turned := img.oriented(orientation)
		row := make([]float32, turned.W)
		for y := range turned.H {
			turned.samples.row(row, 0, y, models.Window{0, 255})
			for x, v := range row {
				if want := turned.spread().Pix[3*(y*turned.W+x)]; byte(v*255+0.5) != want {
					t.Errorf("orientation %d: the sample at %d, %d is %v, the pixel %d", orientation, x, y, v*255, want)
				}
			}
		}
	}
}

func TestReadRegion_TakesTheBrighterPixels(t *testing.T) {
	file := readInput(t, "grey16.png")
	r, err := ReadRegion(file, models.Size{W: 12, H: 7}, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	mask, err := r.Mask()
	if err != nil || len(mask) != 84 || r.Share() <= 0 || r.Share() >= 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := ReadRegion([]byte("prose"), models.Square(16), Limits{}); !errors.Is(err, ErrImage) {
		t.Errorf("error %v", err)
	}
	if _, err := ReadRegion(file, models.Square(16), Limits{MaxPixels: 10}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("error %v", err)
	}
}

func TestLayout_PaintsOnlyWhatChanged(t *testing.T) {
	size := models.Square(16)
	region := models.NewRegion(models.Square(2), []bool{true, true, false, true})
	file, err := os.ReadFile(filepath.Join(deepDir, "grey12.png"))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{{}, {Window: &models.Window{0, 4095}}, Options{Window: &models.Window{0, 4095}}.WithRegion(region), Options{}.WithRegion(region)} {
		image, err := Prepare(file, size, o)
		if err != nil {
			t.Fatal(err)
		}
		l := o.Layout(size)
		before := l.Colours(image)
		colours := append([]byte(nil), before...)
		for _, pixel := range []int{5*16 + 3, 12*16 + 3} { // inside, and outside of the region
			colours[3*pixel] ^= 0x80
		}
		out := make([]byte, len(image))
		l.Paint(out, image, before, colours)
		a, b := make([]float32, 3*size.Area()), make([]float32, 3*size.Area())
		Normalize(a, image)
		Normalize(b, out)
		for i := range a {
			changes := i == 5*16+3 || i == 12*16+3 && !l.Masked
			if (a[i] != b[i]) != changes {
				t.Errorf("%+v: value %d is %v, was %v", l, i, b[i], a[i])
			}
		}
	}
}
