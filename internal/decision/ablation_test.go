package decision

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/heads"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/patches"
	"github.com/deepmed/anomaly/internal/testkit"
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

// The scores that a training computes for an ablation are those of a model trained with
// the ablation.
func TestAblated_ScoresAsAModelTrainedWithIt(t *testing.T) {
	engine := orttest.Open(t)
	data := readTiles(t, testkit.Tiles(t, heads.MinImages))
	var all []*Ablated
	whole := learnFrom(t, data, fewSteps, 2, Options{Ablated: func(a []*Ablated) { all = a }})
	image, err := data.Image(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	members := membersOf(t, engine, whole, data.Layout.W, image)
	measured := map[string]bool{}
	for _, a := range Ablations() {
		if a.Name != "as it is" && a.Name != "no heads" && a.Name != "no features of stride 16" {
			continue
		}
		i := slices.IndexFunc(all, func(b *Ablated) bool { return b.Name == a.Name })
		if i < 0 {
			t.Fatalf("%s: not computed", a.Name)
		}
		without := learnFrom(t, data, fewSteps, 2, Options{Without: a})
		d := detectorOf(t, engine, without, data.Layout.W)
		want, err := d.Score(t.Context(), image)
		if err != nil {
			t.Fatal(err)
		}
		if got := all[i].Score(members); math.Abs(got-want) > 1e-5*max(1, want) {
			t.Errorf("%s: score %v, a model trained with it has %v", a.Name, got, want)
		}
		if got, want := all[i].Threshold, without.Decision.Threshold; got != want {
			t.Errorf("%s: threshold %v, a model trained with it has %v", a.Name, got, want)
		}
		measured[fmt.Sprint(without.Decision.Threshold)] = true
	}
	if len(measured) != 3 {
		t.Errorf("the thresholds %v: some ablations change nothing", measured)
	}
	if i := slices.IndexFunc(all, func(a *Ablated) bool { return a.Name == "no directions of each patch" }); i >= 0 {
		t.Error("an ablation with other statistics is computed from these")
	}
}

// detectorOf returns a detector of the model.
func detectorOf(t *testing.T, engine *ort.Engine, learned Learned, side int) *inference.Detector {
	t.Helper()
	d, err := inference.NewDetector(engine, modelOf(t, learned, side), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// membersOf returns the member scores of a prepared image.
func membersOf(t *testing.T, engine *ort.Engine, learned Learned, side int, pixels []byte) []float64 {
	t.Helper()
	members, _, _, err := detectorOf(t, engine, learned, side).Members(t.Context(), pixels)
	if err != nil {
		t.Fatal(err)
	}
	return members
}
