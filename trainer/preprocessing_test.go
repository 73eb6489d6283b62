package trainer

import (
	"reflect"
	"testing"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/models"
)

func TestOptions_PrepareTrainingImagesAsTheBase(t *testing.T) {
	base := func(p *models.Preprocessing) *models.Model {
		return &models.Model{Metadata: models.Metadata{Preprocessing: p}}
	}
	for name, c := range map[string]struct {
		base    *models.Model
		upright bool
		most    int
	}{
		"a new model":                 {nil, true, 0},
		"a base of this version":      {base(&models.Preprocessing{Orientation: models.OrientationEXIF, MaxValue: 4095}), true, 4095},
		"a base of an earlier one":    {base(&models.Preprocessing{ColorMode: "RGB"}), false, 0},
		"a base of the other service": {base(nil), false, 0},
	} {
		if o := (Options{Base: c.base}).dataset().Images; o.Upright != c.upright || o.MaxValue != c.most {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

func TestPreprocessing_RecordsOrientationAndScale(t *testing.T) {
	for _, c := range []struct {
		data        dataset.Dataset
		orientation string
		most        int
	}{
		{dataset.Dataset{Upright: true, MaxValue: 65535}, models.OrientationEXIF, 0},
		{dataset.Dataset{Upright: true, MaxValue: 4095}, models.OrientationEXIF, 4095},
		{dataset.Dataset{MaxValue: 65535}, "", 0},
	} {
		if p := preprocessing(&c.data, Options{ImageSize: 32}, nil); p.Orientation != c.orientation || p.MaxValue != c.most || p.ColorMode != "RGB" {
			t.Errorf("%+v", p)
		}
	}
}

// Settle is called by the program and again by Train.
func TestSettle_KeepsWhatReplacesThePreparationOfTheBase(t *testing.T) {
	p := models.StandardPreprocessing()
	p.Fit, p.Window = models.FitPad, &models.Window{0, 4095}
	p.Settle()
	base := &models.Model{Architecture: models.DefaultArchitecture(), ImageSize: 64, Metadata: models.Metadata{Preprocessing: p}}
	for name, c := range map[string]struct {
		given  Preparation
		fit    models.Fit
		window *models.Window
	}{
		"nothing":        {Preparation{}, models.FitPad, p.Window},
		"squash":         {Preparation{Fit: "squash"}, "", p.Window},
		"crop":           {Preparation{Fit: "crop"}, models.FitCrop, p.Window},
		"8 bits":         {Preparation{Window: NoWindow}, models.FitPad, nil},
		"another window": {Preparation{Window: "5,6"}, models.FitPad, &models.Window{5, 6}},
		"squash, 8 bits": {Preparation{Fit: "squash", Window: NoWindow}, "", nil},
	} {
		o, err := Options{Base: base}.Prepared(c.given)
		for range 2 {
			if err == nil {
				o, _, err = o.Settle()
			}
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := o.preprocessing(true); got.Fit != c.fit || !reflect.DeepEqual(got.Window, c.window) {
			t.Errorf("%s: the fit %q and the window %v, expected %q and %v", name, got.Fit, got.Window, c.fit, c.window)
		}
		if images := o.dataset().Images; images.Fit != c.fit || !reflect.DeepEqual(images.Window, c.window) {
			t.Errorf("%s: images are read with the fit %q and the window %v", name, images.Fit, images.Window)
		}
	}
}
