package trainer

import (
	"math"

	"github.com/deepmed/anomaly/models"
)

// Ablation is the measure without one of its ingredients: training and detection
// leave it out alike, so that the figures of the two tell what it is worth.
type Ablation struct {
	// Name says what is left out.
	Name    string
	without ingredients
}

// Of gives the options of the same training without the ingredient.
func (a Ablation) Of(o Options) Options {
	o.without = a.without
	return o
}

// Ablations lists what can be left out; the first leaves out nothing.
func Ablations() []Ablation {
	energies := func(s models.NormalityScale, f int) bool { return f < s.Features()-means }
	edge := func(s models.NormalityScale, f int) bool {
		return energies(s, f) && f%(models.Oriented+colours) < models.Oriented
	}
	finest := func(s models.NormalityScale, side int) bool {
		return s.Places == models.NormalityScales(side)[0].Places
	}
	coarsest := func(s models.NormalityScale, _ int) bool { return !s.Relative }
	return []Ablation{
		{Name: "as it is"},
		{"no edges", ingredients{feature: edge}},
		{"no spots of colour", ingredients{feature: func(s models.NormalityScale, f int) bool { return energies(s, f) && !edge(s, f) }}},
		{"no lightness and colour", ingredients{feature: func(s models.NormalityScale, f int) bool { return !energies(s, f) }}},
		{"no correlation", ingredients{correlation: true}},
		{"no markers", ingredients{markers: true}},
		{"no finest scale", ingredients{scale: finest}},
		{"no coarsest scale", ingredients{scale: coarsest}},
	}
}

// A place's features are, for each level, the energies of edges and those of two
// colours, and last the means of lightness and of both colours.
const (
	colours = 2
	means   = 1 + colours
)

// ingredients are those to leave out. The zero value leaves out none.
type ingredients struct {
	// feature and scale report whether one is left out; nil is for none.
	feature     func(s models.NormalityScale, f int) bool
	scale       func(s models.NormalityScale, side int) bool
	correlation bool
	markers     bool
}

// leave changes what was learnt of a scale's places.
func (w ingredients) leave(p *place, s models.NormalityScale, images [][]float32, learnt []int) error {
	size := s.Places * s.Places
	if w.feature != nil {
		for f := range s.Features() {
			if w.feature(s, f) { // it deviates nowhere
				clear(p.precision[f*size : (f+1)*size])
			}
		}
		var err error
		if p.whitening, err = p.correlate(s, images, learnt); err != nil {
			return err
		}
	}
	if w.correlation {
		d := s.Features()
		clear(p.whitening)
		for i := range p.whitening {
			if at := i % (d * d); at/d == at%d {
				p.whitening[i] = 1
			}
		}
	}
	return nil
}

// slope is that of a scale; 0 makes all images alike at it.
func (w ingredients) slope(s models.NormalityScale, side int, std float64) float64 {
	if w.scale != nil && w.scale(s, side) {
		return 0
	}
	return 1 / math.Max(std, 1e-3)
}

// blind clears a marker's first weights (O×C) of features that are left out.
func (w ingredients) blind(weight []float32, scales []models.NormalityScale) {
	channels, c := 0, 0
	for _, s := range scales {
		channels += 2 * s.Features()
	}
	for _, s := range scales {
		for k := range 2 * s.Features() {
			out := w.feature != nil && w.feature(s, k%s.Features())
			for o := 0; out && o < models.MarkerWidth; o++ {
				weight[o*channels+c] = 0
			}
			c++
		}
	}
}
