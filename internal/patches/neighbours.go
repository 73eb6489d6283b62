package patches

import (
	"fmt"
	"math"

	"github.com/deepmed/anomaly/internal/workers"
	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/mat"
)

// spectrumRidge is the share of the mean eigenvalue that is added to each eigenvalue
// before whitening, because directions with little variance would add noise.
const spectrumRidge = 0.1

// Neighbours is a memory bank of pooled features of normal images. The distance of an
// image is that to its nearest neighbour in the bank (DN2; Bergman et al., 2020, and the
// first stage of SPADE; Cohen and Hoshen, 2020). With f the mean over all patches and
// q = Whitening·(f − Mean), the squared distance is the smallest |q − b|² over all rows b
// of Bank.
type Neighbours struct {
	// Mean is the mean of each channel, Channels.
	Mean []float32
	// Whitening is Channels×Channels. Each row is a principal direction, divided by the
	// standard deviation along it.
	Whitening []float32
	// Bank are whitened vectors, M×Channels.
	Bank []float32
}

// FitNeighbours cross-fits memory banks to the images' features, pooled over all patches; see
// the package documentation. A bank has at most size images. If a fit has more, the bank is a
// core-set chosen by the greedy k-center algorithm (Sener and Savarese, 2018; PatchCore; Roth
// et al., 2022), starting with the image closest to the mean. inside are the patches that
// count, by image; nil means all. FitNeighbours returns ErrTooFew if a fit has fewer than 2
// images, and ErrValues if a feature is not finite.
func FitNeighbours(m Map, images [][]float32, inside [][]bool, folds, size int, pool workers.Pool) ([]*Neighbours, error) {
	if size < 1 {
		return nil, fmt.Errorf("patches: a bank of %d images, expected at least 1", size)
	}
	return fitVectors(m, images, inside, folds, pool, func(v vectors) (*Neighbours, error) {
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
		for _, k := range coreSet(q, size) {
			bank = append(bank, q[k]...)
		}
		var out Neighbours
		return &out, narrowAll([]*[]float32{&out.Mean, &out.Whitening, &out.Bank}, v.mean, w, bank)
	})
}

// whitenSpectrum returns V/√(w + spectrumRidge·mean(w)), C×C. The rows of V are the
// eigenvectors of the covariance, and w its eigenvalues.
func whitenSpectrum(v vectors, c int) ([]float64, error) {
	covariance := mat.NewSymDense(c, nil)
	for i := range c {
		for j := range i + 1 {
			covariance.SetSym(i, j, v.covariance[i*c+j])
		}
	}
	var eigen mat.EigenSym
	if !eigen.Factorize(covariance, true) {
		return nil, fmt.Errorf("%w: the eigenvalues of their covariance do not converge", ErrValues)
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

// coreSet returns the indexes of at most size vectors. Each is the vector farthest from
// the vectors before it; ties are resolved in favour of the first.
func coreSet(q [][]float64, size int) []int {
	var chosen []int
	if len(q) <= size {
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
	distances := make([]float64, len(q)) // to the closest chosen vector
	for k := range distances {
		distances[k] = math.Inf(1)
	}
	d := make([]float64, len(q[0]))
	for {
		chosen = append(chosen, next)
		if len(chosen) == size {
			return chosen
		}
		for k, v := range q {
			floats.SubTo(d, v, q[next])
			distances[k] = min(distances[k], floats.Dot(d, d))
		}
		distances[next] = -1 // never choose it again, even if all vectors are equal
		next = floats.MaxIdx(distances)
	}
}

// Distance returns the squared distance of feature map x, Channels×H×W, to its
// nearest neighbour, by the patches inside; nil means all. It is safe for concurrent use.
func (g *Neighbours) Distance(x []float32, inside []bool) float64 {
	c := len(g.Mean)
	f := average(x, c, inside)
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
