package patches

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/deepmed/anomaly/internal/workers"
)

// testdata/make_golden.py computes the expected distances.
func TestDistances_MatchNumPy(t *testing.T) {
	var golden struct {
		Channels, Side, Folds, Rank, Most int
		Images, Queries                   [][]float32
		Fits                              []struct {
			Gaussian           [][]float64
			Pooled, Neighbours []float64
		}
	}
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	m := Map{golden.Channels, golden.Side, golden.Side}
	gaussians := fit(t, m, golden.Images, golden.Folds, golden.Rank, 2)
	pooled, err := FitPooled(m, golden.Images, nil, golden.Folds, workers.Pool{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	neighbours, err := FitNeighbours(m, golden.Images, nil, golden.Folds, golden.Most, workers.Pool{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	if len(golden.Fits) != len(gaussians) {
		t.Fatalf("%d fits, want %d", len(gaussians), len(golden.Fits))
	}
	out := make([]float32, m.Patches())
	for i, want := range golden.Fits {
		if got := len(neighbours[i].Bank); got != golden.Most*m.Channels {
			t.Errorf("fit %d: bank of %d numbers", i, got)
		}
		for k, x := range golden.Queries {
			gaussians[i].Distances(out, x)
			for p, v := range out {
				near(t, "Gaussian", float64(v), want.Gaussian[k][p], 1e-5)
			}
			near(t, "pooled", pooled[i].Distance(x, nil), want.Pooled[k], 1e-5)
			near(t, "neighbours", neighbours[i].Distance(x, nil), want.Neighbours[k], 1e-5)
		}
	}
}

func TestTensors_DefineTheDistances(t *testing.T) {
	m := Map{6, 3, 3}
	images := synthetic(m, 15, 2)
	for _, g := range fit(t, m, images, 2, 2, 2) {
		c, patches := m.Channels, m.Patches()
		out := make([]float32, patches)
		g.Distances(out, images[3])
		for p := range patches {
			y := make([]float64, c)
			squares := 0.0
			for i := range c {
				for j := range c {
					w := g.Whitening[i*c+j]
					if j > i && w != 0 {
						t.Fatal("the whitening is not lower triangular")
					}
					y[i] += float64(w) * float64(images[3][j*patches+p]-g.Mean[j*patches+p])
				}
				squares += y[i] * y[i]
			}
			want := float64(g.Scale[p]) * squares
			for r := range g.Rank {
				along := dot(g.Directions[(p*g.Rank+r)*c:][:c], y)
				want -= along * along
			}
			near(t, "distance", float64(out[p]), want, 1e-5)
		}
	}
}
