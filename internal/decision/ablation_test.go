package decision

import (
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/heads"
	"github.com/deepmed/anomaly/internal/patches"
	"github.com/deepmed/anomaly/models"
)

// Each ablation leaves out exactly what its name describes. The first leaves out
// nothing.
func TestAblations_LeaveOutWhatTheyAreNamedAfter(t *testing.T) {
	taps := models.Taps()
	left := map[string]func(models.Member) bool{
		"no Gaussians of patches":          func(m models.Member) bool { return m.Kind == models.PatchGaussian },
		"no Gaussians of pooled features":  func(m models.Member) bool { return m.Kind == models.PooledGaussian },
		"no neighbours of pooled features": func(m models.Member) bool { return m.Kind == models.PooledNeighbour },
		"no features of stride 16":         func(m models.Member) bool { return m.Block == taps[0].Block },
		"no features of stride 32":         func(m models.Member) bool { return m.Block == taps[1].Block },
	}
	members := models.Members(false)
	names := map[string]bool{}
	var all []float64
	for i, a := range Ablations() {
		if names[a.Name] || (i == 0) != (a.Name == "as it is") {
			t.Errorf("ablation %d is %q, duplicate: %v", i, a.Name, names[a.Name])
		}
		names[a.Name] = true
		o := Options{HeadSteps: 5, Without: a}
		weights := a.weights(members)
		if i == 0 {
			all = weights
		}
		for k, m := range members {
			want := all[k]
			if out := left[a.Name]; out != nil && out(m) {
				want = 0
			}
			if weights[k] != want || all[k] <= 0 {
				t.Errorf("%s: member %v has weight %v, expected %v", a.Name, m, weights[k], want)
			}
		}
		g := &patches.Gaussian{Scale: []float32{3, 4}, Directions: []float32{5, 6, 7}}
		a.removeDirections([]*patches.Gaussian{g})
		if plain := slices.Equal(g.Directions, make([]float32, 3)) && slices.Equal(g.Scale, []float32{1, 1}); plain != (a.Name == "no directions of each patch") {
			t.Errorf("%s: scale %v and directions %v of a patch", a.Name, g.Scale, g.Directions)
		}
		if with := o.HasHeads(heads.MinImages); with != (a.Name != "no heads") {
			t.Errorf("%s: heads %v", a.Name, with)
		}
	}
	for name := range left {
		if !names[name] {
			t.Errorf("ablation %q is missing", name)
		}
	}
}
