package patches

import (
	"context"
	"fmt"
	"math"

	"github.com/deepmed/anomaly/internal/workers"
	"gonum.org/v1/gonum/floats"
)

const (
	// ridge is the share of its variance that is added to each feature's variance in the
	// covariance that all patches share.
	ridge = 0.01
	// shrinkage is the share by which a patch's covariance is shrunk towards the shared
	// one (Ledoit and Wolf, 2004, estimate it). A share that decreases with the number of
	// images did not find more anomalies, and the scale of distances then differed
	// between a fit without a fold and the fit to all images.
	shrinkage = 0.2
	// blockSize is the number of patches that are read from the images at once.
	// Neighbouring patches share cache lines.
	blockSize = 8
	// maxPartials bounds the number of partial sums in memory.
	maxPartials = 32
)

// FitGaussians cross-fits Gaussians to the feature maps of the images; see the package
// documentation. Each has the given rank, or Channels−1 if that is less. The covariance
// of a patch's whitened features is shrunk towards the identity, which is the whitened
// shared covariance. Its largest eigenvalues and their eigenvectors are kept, and the
// other eigenvalues are replaced by their mean (Moghaddam and Pentland, 1997).
//
// inside are the patches that count, by image; nil means all. An image without a patch has
// no deviation there. A patch that no image has, has a distance of 0 from anything.
//
// FitGaussians returns ErrTooFew if a fit has fewer than 2 images, ErrValues if a feature
// is not finite, and ctx's error if ctx ends.
func FitGaussians(ctx context.Context, m Map, images [][]float32, inside [][]bool, folds, rank int, pool workers.Pool) ([]*Gaussian, error) {
	p, err := check(m, images, folds)
	if err != nil {
		return nil, err
	}
	images, seen := imputed(m, images, inside)
	out := make([]*Gaussian, p.fits())
	for i := range out {
		g := &Gaussian{Map: m, Rank: min(max(rank, 0), m.Channels-1)}
		g.Mean = make([]float32, m.Len())
		g.Scale = make([]float32, m.Patches())
		g.Directions = make([]float32, m.Patches()*g.Rank*m.Channels)
		out[i] = g
	}
	whitening, err := fitShared(ctx, m, images, seen.share(), p, pool, out)
	if err != nil {
		return nil, err
	}
	for i, g := range out {
		if g.Whitening, err = narrow(whitening[i]); err != nil {
			return nil, err
		}
	}
	blocks := (m.Patches() + blockSize - 1) / blockSize
	err = pool.EachWith(ctx, blocks, func(context.Context) func(int) error {
		s, w := newSums(m, images, p), newWorker(m.Channels, out[0].Rank)
		return func(block int) error {
			s.load(block * blockSize)
			for patch := range s.patches {
				if err := ctx.Err(); err != nil {
					return err
				}
				if p.few(m.Channels) {
					s.sumFew(patch)
				} else {
					s.sum(patch)
				}
				for fit, g := range out {
					var deviations []float64
					if p.few(m.Channels) {
						w.deviations = s.deviations(w.deviations, patch, fit)
						deviations = w.deviations
					} else {
						s.scatter(w.moment, fit)
					}
					if err := w.fit(g, whitening[fit], deviations, s.first+patch, p.size(fit)); err != nil {
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
	for _, g := range out {
		g.forget(seen)
	}
	return out, nil
}

// fitShared returns each fit's whitening by the covariance that all patches share, and
// stores the means. The caller sums each patch's second moments again; storing them would
// take too much memory. share is the share of the images' patches that count.
func fitShared(ctx context.Context, m Map, images [][]float32, share float64, p partition, pool workers.Pool, out []*Gaussian) ([][]float64, error) {
	c := m.Channels
	blocks := (m.Patches() + blockSize - 1) / blockSize
	perPartial := (blocks + maxPartials - 1) / maxPartials // blocks in a partial sum
	partials := make([][][]float64, (blocks+perPartial-1)/perPartial)
	squares := make([]float64, len(partials))
	err := pool.EachWith(ctx, len(partials), func(context.Context) func(int) error {
		s, moment := newSums(m, images, p), make([]float64, c*c)
		return func(partial int) error {
			sum := make([][]float64, p.fits())
			for fit := range sum {
				sum[fit] = make([]float64, c*c)
			}
			for block := partial * perPartial; block < min((partial+1)*perPartial, blocks); block++ {
				s.load(block * blockSize)
				for patch := range s.patches {
					if err := ctx.Err(); err != nil {
						return err
					}
					s.sum(patch)
					for fit, g := range out {
						s.scatter(moment, fit)
						floats.Add(sum[fit], moment)
						s.mean(patch, fit, func(i int, v float64) { g.Mean[i*m.Patches()+s.first+patch] = float32(v) })
					}
				}
				squares[partial] += s.squares
			}
			partials[partial] = sum
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
			for _, partial := range partials { // in the same order on any number of threads
				floats.Add(shared, partial[fit])
			}
			floats.Scale(1/(float64(m.Patches())*share*float64(p.size(fit)-1)), shared)
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

// worker fits the Gaussians of patches, one after the other.
type worker struct {
	c          int
	moment     []float64 // second moments of the patch's features, C×C, lower triangle
	product    []float64
	leading    *leading
	directions [][]float64
	// For few images: their deviations and whitened deviations, images×channels, and the
	// leading of a Gram matrix by number of images.
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

// fit fits a patch of n images and stores the result in g. The images are given by
// w.moment or, if they are few, by their deviations.
func (w *worker) fit(g *Gaussian, whitening, deviations []float64, patch, n int) error {
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
		return fmt.Errorf("%w: no eigenvalues of patch %d", ErrValues, patch)
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
	g.Scale[patch] = float32(1 / rest)
	for i, u := range w.directions[:kept] {
		f := math.Sqrt(w.weight(i, s, rest))
		to := g.Directions[(patch*r+i)*c:]
		for j, v := range u {
			to[j] = float32(f * v)
		}
	}
	return nil
}

// weight returns the precision of the rest minus the precision along the ith direction,
// or zero if that is negative.
func (w *worker) weight(i int, s, rest float64) float64 {
	return max(0, 1/rest-1/((1-s)*w.leadingValue(i)+s))
}

// whiten replaces the moment M by the lower triangle of W·M·Wᵀ/by.
func (w *worker) whiten(whitening []float64, by float64) {
	c := w.c
	for i := range c {
		for j := range i {
			w.moment[j*c+i] = w.moment[i*c+j]
		}
	}
	for i := range c {
		// Columns after the ith would be multiplied by zeros of Wᵀ.
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
