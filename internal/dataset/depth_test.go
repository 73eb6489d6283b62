package dataset

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// deepDot returns a PNG of one 16-bit grey.
func deepDot(t *testing.T, v uint16) []byte {
	t.Helper()
	img := image.NewGray16(image.Rect(0, 0, 4, 4))
	for i := range 16 {
		img.SetGray16(i%4, i/4, color.Gray16{Y: v})
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestLoad_ScalesDeepImagesByTheLargestSampleOfAll(t *testing.T) {
	grey := dot(t, color.RGBA{R: 100, G: 100, B: 100, A: 255})
	for name, c := range map[string]struct {
		files map[string][]byte
		fixed int
		most  int
		want  []byte // the first value of each image, by name
	}{
		"12 bits":               {map[string][]byte{"a.png": deepDot(t, 2039), "b.png": deepDot(t, 512)}, 0, 4095, []byte{127, 32}},
		"10 bits":               {map[string][]byte{"a.png": deepDot(t, 1023), "b.png": deepDot(t, 512)}, 0, 1023, []byte{255, 128}},
		"14 bits":               {map[string][]byte{"a.png": deepDot(t, 4096), "b.png": deepDot(t, 512)}, 0, 16383, []byte{64, 8}},
		"16 bits":               {map[string][]byte{"a.png": deepDot(t, 16384), "b.png": deepDot(t, 512)}, 0, 65535, []byte{64, 2}},
		"with images of 8 bits": {map[string][]byte{"a.png": deepDot(t, 2039), "b.png": grey}, 0, 4095, []byte{127, 100}},
		"only 8 bits":           {map[string][]byte{"a.png": grey}, 0, 65535, []byte{100}},
		"a given scale":         {map[string][]byte{"a.png": deepDot(t, 2039), "b.png": deepDot(t, 1023)}, 1023, 1023, []byte{255, 255}},
		"the given default":     {map[string][]byte{"a.png": deepDot(t, 2039)}, 65535, 65535, []byte{7}},
	} {
		for _, memory := range []int64{DefaultLimits().MemoryBytes, 0} {
			o := at16
			o.Images.MaxValue, o.Images.Upright = c.fixed, true
			o.Limits.MemoryBytes, o.TempDir = memory, t.TempDir()
			d, err := Load(t.Context(), zipSource(t, c.files), o)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if d.MaxValue != c.most || !d.Upright {
				t.Errorf("%s: scale %d, upright %t, expected %d", name, d.MaxValue, d.Upright, c.most)
			}
			for i, want := range c.want {
				var buffer []byte
				if got, err := d.Image(i, &buffer); err != nil || got[0] != want {
					t.Errorf("%s: image %d is %d, %v, expected %d", name, i, got[0], err, want)
				}
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestDataset_PreparedAsComparesScaleAndOrientation(t *testing.T) {
	load := func(file []byte) *Dataset {
		o := at16
		o.Images.Upright = true
		d, err := Load(t.Context(), zipSource(t, map[string][]byte{"a.png": file}), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	deep, plain := load(deepDot(t, 2039)), load(dot(t, color.White))
	for _, c := range []struct {
		d           *Dataset
		orientation string
		most        int
		want        bool
	}{
		{deep, "exif", 4095, true}, {deep, "exif", 0, false}, {deep, "exif", 1023, false}, {deep, "", 4095, false},
		{plain, "exif", 4095, true}, {plain, "exif", 0, true}, {plain, "", 0, false},
	} {
		if got := c.d.PreparedAs(&models.Preprocessing{Orientation: c.orientation, MaxValue: c.most}); got != c.want {
			t.Errorf("%q, %d: %t", c.orientation, c.most, got)
		}
	}
}
