package trainer

import (
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/models"
)

// Each ablation leaves out what it says, and no more; the first leaves out nothing.
func TestAblationsLeaveOutWhatTheySay(t *testing.T) {
	data := readTiles(t, tileData(t, 16))
	names := map[string]bool{}
	for i, a := range Ablations() {
		if names[a.Name] || (i == 0) != (a.Name == "as it is") {
			t.Errorf("ablation %d is %q, there before: %v", i, a.Name, names[a.Name])
		}
		names[a.Name] = true
		// With a limit nothing is judged to tell what would be found.
		known := learnFrom(t, data, fewSteps, 2, a.Of(Options{MaxTime: time.Hour}), time.Now())
		modelOf(t, known, data.Side)
		withHeads := models.HasHeads(known.tensors)
		if withHeads != (a.Name != "no heads") {
			t.Errorf("%s: heads %v", a.Name, withHeads)
		}
		taps := models.Taps()
		out := map[string]func(models.Member) bool{
			"no Gaussians of patches":          func(m models.Member) bool { return m.Kind == models.PatchGaussian },
			"no Gaussians of pooled features":  func(m models.Member) bool { return m.Kind == models.PooledGaussian },
			"no neighbours of pooled features": func(m models.Member) bool { return m.Kind == models.PooledNeighbour },
			"no features of stride 16":         func(m models.Member) bool { return m.Block == taps[0].Block },
			"no features of stride 32":         func(m models.Member) bool { return m.Block == taps[1].Block },
		}[a.Name]
		weights := known.tensors[len(known.tensors)-1].Data
		sum := float32(0)
		for k, m := range models.Members(withHeads) {
			sum += weights[k]
			if m.Kind == models.Heads { // which count nothing where the others find all
				continue
			}
			if left := out != nil && out(m); (weights[k] == 0) != left {
				t.Errorf("%s: member %v counts %v", a.Name, m, weights[k])
			}
		}
		if sum < 0.9999 || sum > 1.0001 {
			t.Errorf("%s: weights add up to %v", a.Name, sum)
		}
		for _, tensor := range known.tensors {
			if !strings.HasSuffix(tensor.Name, ".directions") {
				continue
			}
			silent := true
			for _, v := range tensor.Data {
				silent = silent && v == 0
			}
			if silent != (a.Name == "no directions of each place") {
				t.Errorf("%s: %s is all zeros: %v", a.Name, tensor.Name, silent)
			}
		}
	}
}
