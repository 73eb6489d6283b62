package trainer

import (
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
