package patches

import (
	"context"
	"fmt"
	"math"

	"github.com/deepmed/anomaly/internal/workers"
	"gonum.org/v1/gonum/floats"
)

const (
	// ridge is the share of its variance that is added to the variance of each
	// feature in the covariance that all places share.
	ridge = 0.01
	// shrinkage is the share by which a place's covariance is shrunk towards the
	// shared one (Ledoit and Wolf, 2004, find it by an estimate). A share that falls
	// with the number of images found no more anomalies, and gave distances of
	// another scale without a fold than with all images.
	shrinkage = 0.2
	// blockPlaces is how many places are read from the images at once: those next to
	// each other share cache lines.
	blockPlaces = 8
	// maxParts bounds the number of partial sums that are held at once.
	maxParts = 32
)

// FitGaussians fits Gaussians to the feature maps of the images: folds+1 of them,
// as the package's description says. Each has the given rank, or Channels−1 if
// that is less. The covariance S_p of whitened features at a place p is shrunk
// towards the identity, which there is the covariance that all places share. Its
// largest eigenvalues and their eigenvectors are kept, and the other eigenvalues
// become their mean (Moghaddam and Pentland, 1997).
//
// FitGaussians returns ErrTooFew if a fit has fewer than 2 images, ErrValues if a
// feature is not finite, or ctx's error if that is done before the end.
func FitGaussians(ctx context.Context, m Map, images [][]float32, folds, rank int, pool workers.Pool) ([]*Gaussian, error) {
	p, err := check(m, images, folds)
	if err != nil {
		return nil, err
	}
	out := make([]*Gaussian, p.fits())
	for i := range out {
		g := &Gaussian{Map: m, Rank: min(max(rank, 0), m.Channels-1)}
		g.Mean = make([]float32, m.Len())
		g.Scale = make([]float32, m.Patches())
		g.Directions = make([]float32, m.Patches()*g.Rank*m.Channels)
		out[i] = g
	}
	whitening, err := fitShared(ctx, m, images, p, pool, out)
	if err != nil {
		return nil, err
	}
	for i, g := range out {
		if g.Whitening, err = narrow(whitening[i]); err != nil {
			return nil, err
		}
	}
	blocks := (m.Patches() + blockPlaces - 1) / blockPlaces
	err = pool.EachWith(ctx, blocks, func(context.Context) func(int) error {
		s, w := newSums(m, images, p), newWorker(m.Channels, out[0].Rank)
		return func(block int) error {
			s.load(block * blockPlaces)
			for place := range s.places {
				if err := ctx.Err(); err != nil {
					return err
				}
				if p.few(m.Channels) {
					s.sumFew(place)
				} else {
					s.sum(place)
				}
				for fit, g := range out {
					var deviations []float64
					if p.few(m.Channels) {
						w.deviations = s.deviations(w.deviations, place, fit)
						deviations = w.deviations
					} else {
						s.scatter(w.moment, fit)
					}
					if err := w.describe(g, whitening[fit], deviations, s.first+place, p.size(fit)); err != nil {
						return err
					}
				}
			}
			return nil
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// fitShared returns each fit's whitening by the covariance that all places share,
// and stores the means. The second moments of each place are summed again later:
// to hold them would take more memory than it saves time.
func fitShared(ctx context.Context, m Map, images [][]float32, p partition, pool workers.Pool, out []*Gaussian) ([][]float64, error) {
	c := m.Channels
	blocks := (m.Patches() + blockPlaces - 1) / blockPlaces
	blocksOf := (blocks + maxParts - 1) / maxParts // in a part
	parts := make([][][]float64, (blocks+blocksOf-1)/blocksOf)
	squares := make([]float64, len(parts))
	err := pool.EachWith(ctx, len(parts), func(context.Context) func(int) error {
		s, moment := newSums(m, images, p), make([]float64, c*c)
		return func(part int) error {
			sum := make([][]float64, p.fits())
			for fit := range sum {
				sum[fit] = make([]float64, c*c)
			}
			for block := part * blocksOf; block < min((part+1)*blocksOf, blocks); block++ {
				s.load(block * blockPlaces)
				for place := range s.places {
					if err := ctx.Err(); err != nil {
						return err
					}
					s.sum(place)
					for fit, g := range out {
						s.scatter(moment, fit)
						floats.Add(sum[fit], moment)
						s.mean(place, fit, func(i int, v float64) { g.Mean[i*m.Patches()+s.first+place] = float32(v) })
					}
				}
				squares[part] += s.squares
			}
			parts[part] = sum
			return nil
		}
	})
	if err != nil {
		return nil, err
	}
	square := floats.Sum(squares) / float64(p.n*m.Len())
	whitening := make([][]float64, p.fits())
	err = pool.EachWith(ctx, p.fits(), func(context.Context) func(int) error {
		return func(fit int) error {
			shared := make([]float64, c*c)
			for _, part := range parts { // in their order, on any number of threads
				floats.Add(shared, part[fit])
			}
			floats.Scale(1/float64(m.Patches()*(p.size(fit)-1)), shared)
			mean := 0.0
			for i := range c {
				mean += shared[i*c+i] / float64(c)
			}
			for i := range c {
				shared[i*c+i] += ridge*shared[i*c+i] + floor(mean, square)
			}
			w, err := inverseFactor(shared, c)
			whitening[fit] = w
			return err
		}
	})
	return whitening, err
}

// worker fits the Gaussian of one place after the other.
type worker struct {
	c          int
	moment     []float64 // of the place's features, C×C, the lower triangle
	product    []float64
	leading    *leading
	directions [][]float64
	// Of few images: their deviations and those whitened, image by image, and what
	// solves the matrix of products of so many.
	deviations, white []float64
	byImages          map[int]*leading
}

func newWorker(c, rank int) *worker {
	w := &worker{c: c, moment: make([]float64, c*c), product: make([]float64, c*c), leading: newLeading(c), directions: make([][]float64, rank), byImages: map[int]*leading{}}
	for i := range w.directions {
		w.directions[i] = make([]float64, c)
	}
	return w
}

// describe stores in g what is known of a place whose n images have the worker's
// moment, or of few images those deviations.
func (w *worker) describe(g *Gaussian, whitening, deviations []float64, place, n int) error {
	c, r := w.c, g.Rank
	trace, ok := 0.0, false
	if deviations != nil {
		trace, ok = w.solveFew(whitening, deviations)
	} else {
		w.whiten(whitening, float64(n-1))
		for i := range c {
			trace += w.moment[i*c+i]
		}
		ok = w.leading.reduce(w.moment)
	}
	if !ok {
		return fmt.Errorf("%w: no eigenvalues at place %d", ErrValues, place)
	}
	for i := range r {
		trace -= w.leadingValue(i)
	}
	const s = shrinkage
	rest := (1-s)*max(trace, 0)/float64(c-r) + s
	kept := 0
	for kept < r && w.weight(kept, s, rest) > 0 {
		kept++
	}
	if deviations != nil {
		w.vectorsFew(w.directions[:kept])
	} else {
		w.leading.vectors(w.moment, w.directions[:kept])
	}
	g.Scale[place] = float32(1 / rest)
	for i, u := range w.directions[:kept] {
		f := math.Sqrt(w.weight(i, s, rest))
		to := g.Directions[(place*r+i)*c:]
		for j, v := range u {
			to[j] = float32(f * v)
		}
	}
	return nil
}

// weight returns how much less precision there is along the ith direction than in
// the rest, or zero if it is not less. Directions without images have none.
func (w *worker) weight(i int, s, rest float64) float64 {
	return max(0, 1/rest-1/((1-s)*w.leadingValue(i)+s))
}

// whiten replaces the moment M by W·M·Wᵀ/by, of whose rows only the lower triangle
// is computed.
func (w *worker) whiten(whitening []float64, by float64) {
	c := w.c
	for i := range c {
		for j := range i {
			w.moment[j*c+i] = w.moment[i*c+j]
		}
	}
	for i := range c {
		// Columns after the ith would meet zeros of Wᵀ.
		row := w.product[i*c : i*c+i+1]
		clear(row)
		for l := range i + 1 {
			floats.AddScaled(row, whitening[i*c+l]/by, w.moment[l*c:l*c+i+1])
		}
	}
	for i := range c {
		for j := range i + 1 {
			w.moment[i*c+j] = floats.Dot(w.product[i*c:i*c+j+1], whitening[j*c:j*c+j+1])
		}
	}
}
