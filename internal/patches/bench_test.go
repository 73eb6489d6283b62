package patches

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/deepmed/anomaly/internal/workers"
)

// synthetic returns n feature maps with correlated channels, different means of each patch
// and eigenvalues that decay as with real features.
func synthetic(m Map, n int, seed uint64) [][]float32 {
	random := rand.New(rand.NewPCG(seed, 1))
	c, patches := m.Channels, m.Patches()
	mixing := make([]float64, c*c)
	for i := range mixing {
		mixing[i] = random.NormFloat64() / math.Sqrt(1+float64(i%c))
	}
	means := make([]float64, m.Len())
	for i := range means {
		means[i] = 3 * random.NormFloat64()
	}
	images := make([][]float32, n)
	z := make([]float64, c)
	common := make([]float64, c)
	for k := range images {
		images[k] = make([]float32, m.Len())
		for j := range common {
			common[j] = random.NormFloat64()
		}
		for p := range patches {
			for j := range z {
				z[j] = common[j] + random.NormFloat64()*(1+float64((p+j)%3))
			}
			for i := range c {
				v := means[i*patches+p]
				for j, e := range z[:min(c, 24)] {
					v += mixing[i*c+j] * e
				}
				images[k][i*patches+p] = float32(v + 0.3*random.NormFloat64())
			}
		}
	}
	return images
}

var benchMaps = []Map{{112, 16, 16}, {192, 8, 8}}

func BenchmarkFitGaussians(b *testing.B) {
	for _, n := range []int{100, 200, 780} {
		for _, m := range benchMaps {
			images := synthetic(m, n, 1)
			b.Run(fmt.Sprintf("n=%d/C=%d", n, m.Channels), func(b *testing.B) {
				for b.Loop() {
					if _, err := FitGaussians(context.Background(), m, images, nil, 5, 16, workers.Pool{Threads: 2}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkPeak(b *testing.B) {
	for _, m := range benchMaps {
		images := synthetic(m, 40, 1)
		g, err := FitGaussians(context.Background(), m, images, nil, 0, 16, workers.Pool{Threads: 2})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("C=%d", m.Channels), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				g[0].Peak(images[0], nil)
			}
		})
	}
}

func BenchmarkFitPooled(b *testing.B) {
	m := benchMaps[1]
	images := synthetic(m, 200, 1)
	for b.Loop() {
		if _, err := FitPooled(m, images, nil, 5, workers.Pool{Threads: 2}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFitNeighbours(b *testing.B) {
	m := benchMaps[1]
	images := synthetic(m, 200, 1)
	for b.Loop() {
		if _, err := FitNeighbours(m, images, nil, 5, 100, workers.Pool{Threads: 2}); err != nil {
			b.Fatal(err)
		}
	}
}
