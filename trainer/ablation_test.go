package trainer

import (
	"testing"

	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// Each ablation leaves out what it says, in the model that is written, and the
// first leaves out nothing.
func TestAblationsLeaveOutWhatTheySay(t *testing.T) {
	engine := orttest.Open(t)
	plain := map[string][]float32{}
	names := map[string]bool{}
	for i, a := range Ablations() {
		m, err := Train(t.Context(), engine, aFewTiles(t), brief(a.Of(Options{Level: 1, ImageSize: 32, Seed: 4})))
		if err != nil {
			t.Fatalf("%s: %v", a.Name, err)
		}
		if err := m.CheckNormality(); err != nil {
			t.Fatalf("%s: %v", a.Name, err)
		}
		if names[a.Name] {
			t.Errorf("%s is there twice", a.Name)
		}
		names[a.Name] = true
		scales := models.NormalityScales(32)
		silent, none, identity := 0, 0, true
		changed := false
		for _, s := range scales {
			ps := s.Parameters()
			value := func(k int) []float32 {
				tensor, ok := m.Normality.Get(ps[k].Name)
				if !ok {
					t.Fatalf("%s: no %s", a.Name, ps[k].Name)
				}
				if i == 0 {
					plain[ps[k].Name] = tensor.Data
				}
				for n, v := range tensor.Data {
					changed = changed || v != plain[ps[k].Name][n]
				}
				return tensor.Data
			}
			for _, v := range value(1) {
				if v == 0 {
					silent++
				}
			}
			d := s.Features()
			for n, v := range value(2) {
				if at := n % (d * d); at/d == at%d {
					identity = identity && v == 1
				} else {
					identity = identity && v == 0
				}
			}
			if value(4)[0] == 0 {
				none++
			}
		}
		want := map[string]struct {
			silent, none int
			identity     bool
		}{
			"no edges":                {count(scales, models.Oriented, 0), 0, false},
			"no spots of colour":      {count(scales, colours, 0), 0, false},
			"no lightness and colour": {count(scales, 0, means), 0, false},
			"no correlation":          {0, 0, true},
			"no markers":              {0, 0, false}, // at this level there are none
			"no finest scale":         {0, 1, false},
			"no coarsest scale":       {0, 1, false},
		}[a.Name]
		if silent != want.silent || none != want.none || identity != want.identity || changed != (i > 0 && a.Name != "no markers") {
			t.Errorf("%s: %d features and %d scales are left out, correlation %v, changed %v; expected %+v", a.Name, silent, none, identity, changed, want)
		}
	}
}

// count is how many values of precision belong to so many features of a level, and
// so many of a place.
func count(scales []models.NormalityScale, ofLevel, ofPlace int) int {
	n := 0
	for _, s := range scales {
		n += s.Places * s.Places * (len(s.Levels)*ofLevel + ofPlace)
	}
	return n
}
