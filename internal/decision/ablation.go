package decision

import (
	"slices"

	"github.com/deepmed/anomaly/internal/patches"
	"github.com/deepmed/anomaly/models"
)

// Ablation leaves out one ingredient of the anomaly score, in training and detection
// alike. Comparing results with and without it measures the ingredient's effect. The
// zero value leaves out nothing.
type Ablation struct {
	// Name describes what is left out.
	Name string
	// member reports whether a member is left out; nil leaves out none.
	member func(models.Member) bool
	// directions leaves out the patches' own directions; the covariance that all
	// patches share remains.
	directions bool
	heads      bool
}

// Ablations returns all ablations. The first leaves out nothing.
func Ablations() []Ablation {
	kind := func(name string, k models.MemberKind) Ablation {
		return Ablation{Name: name, member: func(m models.Member) bool { return m.Kind == k }}
	}
	block := func(name string, b int) Ablation {
		return Ablation{Name: name, member: func(m models.Member) bool { return m.Block == b }}
	}
	taps := models.Taps()
	return []Ablation{
		{Name: "as it is"},
		kind("no Gaussians of patches", models.PatchGaussian),
		{Name: "no directions of each patch", directions: true},
		kind("no Gaussians of pooled features", models.PooledGaussian),
		kind("no neighbours of pooled features", models.PooledNeighbour),
		block("no features of stride 16", taps[0].Block),
		block("no features of stride 32", taps[1].Block),
		{Name: "no heads", heads: true},
	}
}

// weights returns the weights of the members; 0 leaves a member out.
func (a Ablation) weights(ms []models.Member) []float64 {
	out := make([]float64, len(ms))
	for i, m := range ms {
		tap := slices.IndexFunc(models.Taps(), func(t models.Tap) bool { return t.Block == m.Block })
		if a.member == nil || !a.member(m) {
			out[i] = memberWeights[m.Kind][tap]
		}
	}
	return out
}

// removeDirections removes the patches' directions from fitted Gaussians if the
// ablation leaves them out.
func (a Ablation) removeDirections(fits []*patches.Gaussian) {
	if !a.directions {
		return
	}
	for _, g := range fits {
		clear(g.Directions)
		for i := range g.Scale {
			g.Scale[i] = 1
		}
	}
}
