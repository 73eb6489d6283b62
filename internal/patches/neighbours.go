package patches

import (
	"fmt"
	"math"

	"github.com/deepmed/anomaly/internal/workers"
	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/mat"
)

// spectrumRidge is the share of the mean eigenvalue that is added to each before
// neighbours are whitened: directions without variance would only add noise.
const spectrumRidge = 0.1

// Neighbours describes normal images by the images themselves: an image is as far
// away as its nearest neighbour is (DN2; Bergman et al., 2020, and the first stage
// of SPADE; Cohen and Hoshen, 2020). With f the mean over all places and
// q = Whitening·(f − Mean), the squared distance is the smallest |q − b|² of a row
// b of Bank.
type Neighbours struct {
	// Mean is the mean of each channel, Channels.
	Mean []float32
	// Whitening is Channels×Channels, row by row: a row for each principal direction,
	// divided by the standard deviation along it.
	Whitening []float32
	// Bank is one whitened vector after the other, M×Channels.
	Bank []float32
}

// FitNeighbours fits whitened banks of the means over all places of the images'
// feature maps: folds+1 of them, as the package's description says. A bank has all
// of a fit's images, or so many of them at most: then those that the greedy
// algorithm for k centres chooses as a core-set (Sener and Savarese, 2018; PatchCore;
// Roth et al., 2022), beginning with the one closest to the mean. It returns ErrTooFew
// if a fit has fewer than 2 images, or ErrValues if a feature is not finite.
func FitNeighbours(m Map, images [][]float32, folds, most int, pool workers.Pool) ([]*Neighbours, error) {
	if most < 1 {
		return nil, fmt.Errorf("patches: no bank of %d images", most)
	}
	return fitVectors(m, images, folds, pool, func(v vectors) (*Neighbours, error) {
		w, err := whitenSpectrum(v, m.Channels)
		if err != nil {
			return nil, err
		}
		c := m.Channels
		q := make([][]float64, len(v.x))
		d := make([]float64, c)
		for k, f := range v.x {
			q[k] = make([]float64, c)
			floats.SubTo(d, f, v.mean)
			for i := range c {
				q[k][i] = floats.Dot(w[i*c:(i+1)*c], d)
			}
		}
		var bank []float64
		for _, k := range coreSet(q, most) {
			bank = append(bank, q[k]...)
		}
		var out Neighbours
		return &out, narrowAll([]*[]float32{&out.Mean, &out.Whitening, &out.Bank}, v.mean, w, bank)
	})
}

// whitenSpectrum returns V/√(w + spectrumRidge·mean(w)), C×C, with the eigenvectors
// V of the covariance in rows and its eigenvalues w.
func whitenSpectrum(v vectors, c int) ([]float64, error) {
	covariance := mat.NewSymDense(c, nil)
	for i := range c {
		for j := range i + 1 {
			covariance.SetSym(i, j, v.covariance[i*c+j])
		}
	}
	var eigen mat.EigenSym
	if !eigen.Factorize(covariance, true) {
		return nil, fmt.Errorf("%w: their covariance has no eigenvalues", ErrValues)
	}
	var directions mat.Dense
	eigen.VectorsTo(&directions)
	values := eigen.Values(nil)
	ridge := spectrumRidge*mat.Trace(covariance)/float64(c) + v.floor
	out := make([]float64, c*c)
	for i, value := range values {
		f := 1 / math.Sqrt(max(value, 0)+ridge)
		for j := range c {
			out[i*c+j] = f * directions.At(j, i)
		}
	}
	return out, nil
}

// coreSet returns the indexes of most vectors, or of all if they are not more: each
// is the one farthest from those before it. Of equal ones it takes the first.
func coreSet(q [][]float64, most int) []int {
	var chosen []int
	if len(q) <= most {
		for k := range q {
			chosen = append(chosen, k)
		}
		return chosen
	}
	next, nearest := 0, math.Inf(1)
	for k, v := range q {
		if d := floats.Dot(v, v); d < nearest {
			next, nearest = k, d
		}
	}
	distances := make([]float64, len(q)) // to the closest that is chosen
	for k := range distances {
		distances[k] = math.Inf(1)
	}
	d := make([]float64, len(q[0]))
	for {
		chosen = append(chosen, next)
		if len(chosen) == most {
			return chosen
		}
		for k, v := range q {
			floats.SubTo(d, v, q[next])
			distances[k] = min(distances[k], floats.Dot(d, d))
		}
		distances[next] = -1 // not again, even if all are alike
		next = floats.MaxIdx(distances)
	}
}

// Distance returns the squared distance of the feature map x, Channels×Side×Side,
// to its nearest neighbour. It may be called by several goroutines at once.
func (g *Neighbours) Distance(x []float32) float64 {
	c := len(g.Mean)
	f := average(x, c)
	for i := range f {
		f[i] -= float64(g.Mean[i])
	}
	q := make([]float64, c)
	for i := range q {
		q[i] = dot(g.Whitening[i*c:(i+1)*c], f)
	}
	nearest := math.Inf(1)
	for at := 0; at < len(g.Bank); at += c {
		sum := 0.0
		for i, v := range g.Bank[at : at+c] {
			d := q[i] - float64(v)
			sum += d * d
		}
		nearest = min(nearest, sum)
	}
	return nearest
}
