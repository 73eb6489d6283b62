package network

import (
	"math"
	"math/rand/v2"

	"github.com/deepmed/anomaly/models"
)

// InitialWeights returns random weights and biases with the default
// distribution of PyTorch's Conv2d and ConvTranspose2d: kaiming_uniform with
// a = √5, which is U(−1/√f, 1/√f). PyTorch's fan-in f is the second axis times
// the kernel's area, also for a transposed convolution, where the second axis is
// the output channels. A bias must follow its weight, whose bound it shares.
func InitialWeights(ps []models.Parameter, random *rand.Rand) models.StateDict {
	var sd models.StateDict
	bound := 0.0
	for _, p := range ps {
		if len(p.Shape) == 4 {
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
