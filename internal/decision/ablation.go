package decision

import (
	"slices"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/heads"
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

// Ablated computes the anomaly score of images as a model trained with an ablation does,
// from the member scores of the model trained without it.
type Ablated struct {
	Name string
	// Threshold is the anomaly score above which an image is anomalous.
	Threshold float64

	calibration *calibration.Calibration
	heads       bool // whether the heads are a member
}

// Score returns the anomaly score of an image by the scores of all members of the model.
func (a *Ablated) Score(members []float64) float64 {
	if head := models.PatchMembers(false); !a.heads && len(members) > len(models.Members(false)) {
		members = slices.Delete(slices.Clone(members), head, head+1)
	}
	return a.calibration.Join(members)
}

// SharesStatistics reports whether a training with the ablation fits the same reference
// statistics and heads as one with the other.
func (a Ablation) SharesStatistics(other Ablation) bool { return a.directions == other.directions }

// ablated returns what each ablation makes of the cross-fitted member scores of the normal
// images and of the trained heads.
func (x *reference) ablated(members [][]float64, h *heads.Heads, o Options) ([]*Ablated, error) {
	var out []*Ablated
	for _, a := range Ablations() {
		if !a.SharesStatistics(o.Without) {
			continue
		}
		of, trained := o, h
		of.Without = a
		if a.heads {
			trained = nil
		}
		c, err := x.calibrate(slices.Clone(members), trained, of)
		if err != nil {
			return nil, err
		}
		out = append(out, &Ablated{a.Name, c.Threshold, c, trained != nil})
	}
	return out, nil
}
