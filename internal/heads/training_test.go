package heads

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

func TestTraining_FoldsStandardizationIntoTheFirstLayer(t *testing.T) {
	const side = 32
	maps := extractor.MapsOf(models.Square(side))
	r := rand.New(rand.NewPCG(1, 1))
	h := &training{images: Images{Maps: maps}}
	var raw, standardized [][]float32
	for _, m := range maps {
		area := m.Area()
		a, b := make([]float32, m.Floats()), make([]float32, m.Floats())
		for c := range m.Channels {
			mean, precision := float32(r.NormFloat64()), float32(0.2+2*r.Float64())
			h.mean, h.precision = append(h.mean, mean), append(h.precision, precision)
			for i := c * area; i < (c+1)*area; i++ {
				b[i] = float32(r.NormFloat64())
				a[i] = b[i]/precision + mean
			}
		}
		raw, standardized = append(raw, a), append(standardized, b)
	}
	weights := network.InitialWeights(models.HeadParameters(0), r)
	engine := orttest.Open(t)
	scorer := func(sd models.StateDict) *Scorer {
		s, err := (&Heads{engine: engine, maps: maps, size: models.Square(side), Tensors: [models.HeadCount]models.StateDict{sd, sd}}).Scorer()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	logits := func(s *Scorer, features [][]float32) []float32 {
		if _, err := s.Peak(t.Context(), 0, features, nil); err != nil {
			t.Fatal(err)
		}
		return slices.Clone(s.logits.Data())
	}
	want := logits(scorer(weights), standardized)
	got := logits(scorer(h.folded(weights)), raw)
	for i, w := range want {
		if math.Abs(float64(got[i]-w)) > 1e-4 {
			t.Fatalf("logit %d: %v with folded, %v with separate standardization", i, got[i], w)
		}
	}
	if slices.Max(want) == slices.Min(want) {
		t.Error("all logits are equal")
	}
}

func TestMaxPool_MarksThePatchOfAPixel(t *testing.T) {
	for _, side := range []int{16, 48, 144, 256} {
		in := models.BackboneInputOf(models.Square(side))
		for _, m := range extractor.MapsOf(models.Square(side)) {
			stride := in.Size.W / m.W
			for _, at := range [][2]int{{0, 0}, {side / 3, side / 2}, {side - 1, side - 1}, {5, side - 2}} {
				mask := make([]float32, side*side)
				mask[at[1]*side+at[0]] = 0.75
				target := maxPool(mask, models.Square(side), m)
				marked := 0
				for p, v := range target {
					if v == 0 {
						continue
					}
					marked++
					// The center of the pixel in the backbone's input must be in the patch.
					for axis, patch := range []int{p % m.W, p / m.W} {
						middle := (float64(at[axis])+0.5)*float64(in.Times) + float64(in.Border.W)
						if v != 0.75 || middle < float64(patch*stride) || middle > float64((patch+1)*stride) {
							t.Errorf("%d px, block %d: pixel %v marks patch %d with %v", side, m.Block, at, p, v)
						}
					}
				}
				if marked != 1 {
					t.Errorf("%d px, block %d: pixel %v marks %d patches", side, m.Block, at, marked)
				}
			}
		}
	}
}
