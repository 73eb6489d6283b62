package network

import (
	"math"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/models"
)

// PyTorch's distribution is U(−1/√f, 1/√f), where f is the second axis times the
// kernel's area, for both kinds of weights.
func TestInitialWeights_HavePyTorchsDistribution(t *testing.T) {
	arch := models.DefaultArchitecture()
	sd := InitialWeights(arch.Parameters(), streams.New(3, streams.Weights))
	if got, err := models.ArchitectureOf(sd); err != nil || !got.Equal(arch) {
		t.Fatal(err)
	}
	fan := 0.0
	for _, w := range sd {
		if len(w.Shape) == 4 {
			fan = float64(w.Shape[1] * 9)
		}
		bound := 1 / math.Sqrt(fan)
		sum, squares, top := 0.0, 0.0, 0.0
		for _, v := range w.Data {
			sum += float64(v)
			squares += float64(v) * float64(v)
			top = max(top, math.Abs(float64(v)))
		}
		n := float64(len(w.Data))
		if top > bound*(1+1e-6) {
			t.Errorf("%s: largest %v exceeds the bound %v", w.Name, top, bound)
		}
		if n < 500 {
			continue
		}
		if std := math.Sqrt(squares / n); math.Abs(std-bound/math.Sqrt(3)) > 0.05*bound || math.Abs(sum/n) > 0.1*bound || top < 0.98*bound {
			t.Errorf("%s: mean %v, deviation %v, largest %v for a bound of %v", w.Name, sum/n, std, top, bound)
		}
	}
	if slices.Equal(sd[0].Data, InitialWeights(arch.Parameters(), streams.New(4, streams.Weights))[0].Data) {
		t.Error("two seeds yield the same weights")
	}
}
