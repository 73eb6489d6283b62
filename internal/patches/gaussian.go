package patches

import (
	"slices"
	"sync"

	"gonum.org/v1/gonum/blas/blas32"
)

// Gaussian describes what features are usual at each place of a map: a Gaussian
// for each place (PaDiM; Defard et al., 2020), whose covariance is one that all
// places share with a correction of low rank at each. With y = Whitening·(x − Mean)
// the squared Mahalanobis distance at place p is
//
//	Scale[p]·|y|² − |Directions[p]·y|²
type Gaussian struct {
	Map
	// Rank is the number of directions at each place.
	Rank int
	// Mean is the mean of each feature at each place, Channels×Side×Side.
	Mean []float32
	// Whitening is the inverse of the lower Cholesky factor of the covariance that
	// all places share, Channels×Channels, row by row, with zeros above the diagonal.
	Whitening []float32
	// Scale is the precision at each place in all but its own directions, Side×Side.
	Scale []float32
	// Directions are the directions of largest variance at each place, multiplied by
	// the root of what precision is less there, Patches×Rank×Channels.
	Directions []float32
}

// scratch holds memory for what a map's distances are computed from.
var scratch = sync.Pool{New: func() any { return new([]float32) }}

// Distances stores the squared Mahalanobis distance at each place of the feature
// map x, Channels×Side×Side, in out, Side×Side. It may be called by several
// goroutines at once.
func (g *Gaussian) Distances(out, x []float32) {
	g.each(x, func(place int, d float64) { out[place] = float32(d) })
}

// Peak returns the largest squared Mahalanobis distance among the places of the
// feature map x, Channels×Side×Side. It may be called by several goroutines at
// once.
func (g *Gaussian) Peak(x []float32) float64 {
	highest := 0.0
	g.each(x, func(_ int, d float64) { highest = max(highest, d) })
	return highest
}

// each calls f with the squared distance at each place.
func (g *Gaussian) each(x []float32, f func(place int, d float64)) {
	c, places := g.Channels, g.Patches()
	held := scratch.Get().(*[]float32)
	defer scratch.Put(held)
	*held = slices.Grow((*held)[:0], 2*c*places)[:2*c*places]
	deviation, y := (*held)[:c*places], (*held)[c*places:]
	for i, v := range x[:c*places] {
		deviation[i] = v - g.Mean[i]
	}
	g.whiten(y, deviation)
	// A place's features next to each other, in the deviations' memory.
	for i := range c {
		for p, v := range y[i*places : (i+1)*places] {
			deviation[p*c+i] = v
		}
	}
	for p := range places {
		v := blas32.Vector{N: c, Inc: 1, Data: deviation[p*c : (p+1)*c]}
		d := float64(g.Scale[p]) * blas32.DDot(v, v)
		for r := range g.Rank {
			at := (p*g.Rank + r) * c
			along := blas32.DDot(v, blas32.Vector{N: c, Inc: 1, Data: g.Directions[at : at+c]})
			d -= along * along
		}
		f(p, max(d, 0)) // below zero by rounding only
	}
}

// whiten sets y to Whitening·deviation. BLAS's product of matrices would start
// goroutines of its own.
func (g *Gaussian) whiten(y, deviation []float32) {
	c, places := g.Channels, g.Patches()
	clear(y)
	for i := range c {
		row := blas32.Vector{N: places, Inc: 1, Data: y[i*places : (i+1)*places]}
		for j := range i + 1 {
			blas32.Axpy(g.Whitening[i*c+j], blas32.Vector{N: places, Inc: 1, Data: deviation[j*places : (j+1)*places]}, row)
		}
	}
}
