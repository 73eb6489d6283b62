package dataset

import (
	"image/color"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// A model whose window Check refuses could not be read again.
func TestWindowFinder_ChoosesWindowsThatModelsCanHave(t *testing.T) {
	for name, c := range map[string]struct {
		values []float32
		chosen bool
	}{
		"12 bits": {[]float32{0, 2000, 4095}, true}, "one value": {[]float32{7, 7, 7}, true}, "zeros": {[]float32{0, 0}, true},
		"one large value": {[]float32{1e9, 1e9}, true}, "negative": {[]float32{-1e9, -1e9}, true},
		"too large": {[]float32{0, 1e30}, false}, "the largest": {[]float32{-3.4e38, 3.4e38}, false}, "one value that is too large": {[]float32{1e20, 1e20}, false},
		"too close": {[]float32{0, 1e-30}, false},
	} {
		w := (&windowFinder{images: []probed{{read: true, deep: true, values: c.values}}}).find()
		if (w != nil) != c.chosen || w != nil && (w.Check() != nil || w[0] > float64(c.values[0]) || w[1] < float64(c.values[len(c.values)-1])) {
			t.Errorf("%s: %v", name, w)
		}
	}
}

func TestLoad_WarnsOfAWindowThatImagesOf8BitsDoNotFill(t *testing.T) {
	for name, c := range map[string]struct {
		window models.Window
		warns  bool
	}{"12 bits": {models.Window{0, 4095}, true}, "8 bits": {models.Window{10, 255}, false}} {
		o := at16
		o.Images.Window = &c.window
		d, err := Load(t.Context(), zipSource(t, map[string][]byte{"a.png": dot(t, color.White), "b.png": deepDot(t, 4000)}), o)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if warned := slices.ContainsFunc(d.Warnings, func(s string) bool { return strings.HasPrefix(s, "1 of the 2 images have 8 bits") }); warned != c.warns {
			t.Errorf("%s: %q", name, d.Warnings)
		}
	}
}
