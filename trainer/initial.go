package trainer

import (
	"math"
	"math/rand/v2"

	"github.com/deepmed/anomaly/models"
)

// Streams of random numbers that one seed gives. Each use has its own, so that
// one more number drawn in one place changes nothing elsewhere.
const (
	streamWeights = iota + 1
	streamShuffle
	streamCalibration
	streamNormals
	streamHeads // two for each head, see headTraining
	_
	_
	_
	streamDetectability
)

func stream(seed int64, use uint64) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(seed), use))
}

// InitialWeights draws a network's weights as PyTorch's Conv2d and
// ConvTranspose2d do by default: weights by kaiming_uniform with a = √5 and
// biases alike, both of which come down to U(−1/√f, 1/√f). PyTorch's fan-in f
// is the second axis times the kernel's area for either kind of layer, also
// for the transposed one, where that axis counts the outputs.
func InitialWeights(arch models.Architecture, seed int64) models.StateDict {
	return initial(arch.Parameters(), stream(seed, streamWeights))
}

// initial draws those parameters, weights and their biases in turn.
func initial(ps []models.Parameter, random *rand.Rand) models.StateDict {
	var sd models.StateDict
	bound := 0.0
	for _, p := range ps {
		if len(p.Shape) == 4 { // a weight; its bias follows and shares the bound
			bound = 1 / math.Sqrt(float64(p.Shape[1]*p.Shape[2]*p.Shape[3]))
		}
		data := make([]float32, p.Size())
		for i := range data {
			data[i] = float32((2*random.Float64() - 1) * bound)
		}
		sd = append(sd, models.Tensor{Name: p.Name, Shape: p.Shape, Data: data})
	}
	return sd
}
