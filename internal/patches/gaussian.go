package patches

import (
	"slices"
	"sync"

	"gonum.org/v1/gonum/blas/blas32"
)

// Gaussian is a Gaussian of the features of each patch (PaDiM; Defard et al., 2020). Its
// covariance is the covariance that all patches share, with a low-rank correction for
// each patch. With y = Whitening·(x − Mean), the squared Mahalanobis distance of patch p
// is
//
//	Scale[p]·|y|² − |Directions[p]·y|²
type Gaussian struct {
	Map
	// Rank is the number of directions of each patch.
	Rank int
	// Mean is the mean of each feature, Channels×H×W.
	Mean []float32
	// Whitening is the inverse of the lower Cholesky factor of the covariance that all
	// patches share, Channels×Channels, row by row, with zeros above the diagonal.
	Whitening []float32
	// Scale is the precision of each patch outside of its own directions, H×W.
	Scale []float32
	// Directions are each patch's directions of largest variance, Patches×Rank×Channels.
	// The squared norm of a direction is the difference between Scale and the precision
	// along it.
	Directions []float32
}

// scratch holds buffers for computing distances.
var scratch = sync.Pool{New: func() any { return new([]float32) }}

// Peak returns the largest squared Mahalanobis distance of the patches of feature map x,
// Channels×H×W, of the patches inside; nil means all. It is safe for concurrent use.
func (g *Gaussian) Peak(x []float32, inside []bool) float64 {
	highest := 0.0
	g.each(x, func(p int, d float64) {
		if inside == nil || inside[p] {
			highest = max(highest, d)
		}
	})
	return highest
}

// each calls f with the squared distance of each patch.
func (g *Gaussian) each(x []float32, f func(patch int, d float64)) {
	c, patches := g.Channels, g.Patches()
	buffer := scratch.Get().(*[]float32)
	defer scratch.Put(buffer)
	*buffer = slices.Grow((*buffer)[:0], 2*c*patches)[:2*c*patches]
	deviation, y := (*buffer)[:c*patches], (*buffer)[c*patches:]
	for i, v := range x[:c*patches] {
		deviation[i] = v - g.Mean[i]
	}
	g.whiten(y, deviation)
	// Transpose to patches×channels, into the memory of the deviations.
	for i := range c {
		for p, v := range y[i*patches : (i+1)*patches] {
			deviation[p*c+i] = v
		}
	}
	for p := range patches {
		v := blas32.Vector{N: c, Inc: 1, Data: deviation[p*c : (p+1)*c]}
		d := float64(g.Scale[p]) * blas32.DDot(v, v)
		for r := range g.Rank {
			at := (p*g.Rank + r) * c
			along := blas32.DDot(v, blas32.Vector{N: c, Inc: 1, Data: g.Directions[at : at+c]})
			d -= along * along
		}
		f(p, max(d, 0)) // negative by rounding only
	}
}

// whiten sets y to Whitening·deviation. It does not use BLAS's matrix product, which
// starts goroutines.
func (g *Gaussian) whiten(y, deviation []float32) {
	c, patches := g.Channels, g.Patches()
	clear(y)
	for i := range c {
		row := blas32.Vector{N: patches, Inc: 1, Data: y[i*patches : (i+1)*patches]}
		for j := range i + 1 {
			blas32.Axpy(g.Whitening[i*c+j], blas32.Vector{N: patches, Inc: 1, Data: deviation[j*patches : (j+1)*patches]}, row)
		}
	}
}
