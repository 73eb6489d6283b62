package trainer

import (
	"slices"

	"github.com/deepmed/anomaly/internal/patches"
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
	kind := func(k models.MemberKind) ingredients {
		return ingredients{member: func(m models.Member) bool { return m.Kind == k }}
	}
	block := func(b int) ingredients {
		return ingredients{member: func(m models.Member) bool { return m.Block == b }}
	}
	taps := models.Taps()
	return []Ablation{
		{Name: "as it is"},
		{"no Gaussians of patches", kind(models.PatchGaussian)},
		{"no directions of each place", ingredients{directions: true}},
		{"no Gaussians of pooled features", kind(models.PooledGaussian)},
		{"no neighbours of pooled features", kind(models.PooledNeighbour)},
		{"no features of stride 16", block(taps[0].Block)},
		{"no features of stride 32", block(taps[1].Block)},
		{"no heads", ingredients{heads: true}},
	}
}

// ingredients are those to leave out. The zero value leaves out none.
type ingredients struct {
	// member reports whether one is left out; nil is for none.
	member func(models.Member) bool
	// directions is what each place has beside the covariance that all share.
	directions bool
	heads      bool
}

// weights are what those members count.
func (w ingredients) weights(ms []models.Member) []float64 {
	out := make([]float64, len(ms))
	for i, m := range ms {
		tap := slices.IndexFunc(models.Taps(), func(t models.Tap) bool { return t.Block == m.Block })
		if w.member == nil || !w.member(m) {
			out[i] = memberWeights[m.Kind][tap]
		}
	}
	return out
}

// leave changes what was learnt of patches.
func (w ingredients) leave(fits []*patches.Gaussian) {
	if !w.directions {
		return
	}
	for _, g := range fits {
		clear(g.Directions)
		for i := range g.Scale {
			g.Scale[i] = 1
		}
	}
}
