package patches

import (
	"context"
	"math"

	"github.com/deepmed/anomaly/internal/workers"
	"gonum.org/v1/gonum/floats"
)

// pooledShrinkage is the share by which the covariance of pooled features is shrunk
// towards its diagonal (Ledoit and Wolf, 2004).
const pooledShrinkage = 0.3

// Pooled is a Gaussian of features pooled over all patches (Rippel et al., "Modeling the
// Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection", 2021).
// With f the mean over all patches, the squared Mahalanobis distance is
// |Whitening·((f − Mean)·Precision)|², where the product with Precision is by channel.
type Pooled struct {
	// Mean is the mean of each channel, Channels.
	Mean []float32
	// Precision is one over the standard deviation of each channel, Channels.
	Precision []float32
	// Whitening is the inverse of the lower Cholesky factor of the correlation
	// matrix, Channels×Channels, row by row, with zeros above the diagonal.
	Whitening []float32
}

// FitPooled cross-fits Gaussians to the images' features, pooled over all patches; see
// the package documentation. inside are the patches that count, by image; nil means all. It
// returns ErrTooFew if a fit has fewer than 2 images, and
// ErrValues if a feature is not finite.
func FitPooled(m Map, images [][]float32, inside [][]bool, folds int, pool workers.Pool) ([]*Pooled, error) {
	return fitVectors(m, images, inside, folds, pool, func(v vectors) (*Pooled, error) {
		c := m.Channels
		for i := range c {
			for j := range i {
				v.covariance[i*c+j] *= 1 - pooledShrinkage
			}
			v.covariance[i*c+i] += v.floor
		}
		precision := make([]float64, c)
		for i := range c {
			precision[i] = 1 / math.Sqrt(v.covariance[i*c+i])
			for j := range i + 1 {
				v.covariance[i*c+j] *= precision[i] * precision[j]
			}
			v.covariance[i*c+i] = 1
		}
		w, err := inverseFactor(v.covariance, c)
		if err != nil {
			return nil, err
		}
		var out Pooled
		return &out, narrowAll([]*[]float32{&out.Mean, &out.Precision, &out.Whitening}, v.mean, precision, w)
	})
}

// Distance returns the squared Mahalanobis distance of feature map x,
// Channels×H×W, by the patches inside; nil means all. It is safe for concurrent use.
func (g *Pooled) Distance(x []float32, inside []bool) float64 {
	c := len(g.Mean)
	z := average(x, c, inside)
	for i := range z {
		z[i] = (z[i] - float64(g.Mean[i])) * float64(g.Precision[i])
	}
	sum := 0.0
	for i := range c {
		v := dot(g.Whitening[i*c:i*c+i+1], z)
		sum += v * v
	}
	return sum
}

// vectors are the pooled features of a fit.
type vectors struct {
	x          [][]float64 // by image and channel
	mean       []float64
	covariance []float64 // C×C, lower triangle
	floor      float64   // to add to its eigenvalues
}

// fitVectors calls fit with the pooled features of each fit.
func fitVectors[T any](m Map, images [][]float32, inside [][]bool, folds int, pool workers.Pool, fit func(vectors) (T, error)) ([]T, error) {
	p, err := check(m, images, folds)
	if err != nil {
		return nil, err
	}
	c := m.Channels
	x := make([][]float64, p.n)
	for k, image := range images {
		x[k] = average(image, c, insideOf(inside, k))
	}
	out := make([]T, p.fits())
	err = pool.EachWith(context.Background(), len(out), func(context.Context) func(int) error {
		return func(i int) error {
			v := vectors{mean: make([]float64, c), covariance: make([]float64, c*c)}
			for k, f := range x {
				if p.has(i, k) {
					v.x = append(v.x, f)
				}
			}
			n := float64(len(v.x))
			// Subtract one of them first, so that identical images have zero deviations.
			d := make([]float64, c)
			square := 0.0
			for _, f := range v.x {
				square += floats.Dot(f, f) / (n * float64(c))
				floats.SubTo(d, f, v.x[0])
				floats.AddScaled(v.mean, 1/n, d)
			}
			floats.Add(v.mean, v.x[0])
			for _, f := range v.x {
				floats.SubTo(d, f, v.mean)
				for i, e := range d {
					floats.AddScaled(v.covariance[i*c:i*c+i+1], e/(n-1), d[:i+1])
				}
			}
			variance := 0.0
			for i := range c {
				variance += v.covariance[i*c+i] / float64(c)
			}
			v.floor = floor(variance, square)
			var err error
			out[i], err = fit(v)
			return err
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// average returns the mean of each of c channels over the patches inside; nil means all.
func average(x []float32, c int, inside []bool) []float64 {
	if inside != nil {
		return averageInside(x, c, inside)
	}
	patches := len(x) / c
	f := make([]float64, c)
	for i := range f {
		for _, v := range x[i*patches : (i+1)*patches] {
			f[i] += float64(v)
		}
		f[i] /= float64(patches)
	}
	return f
}

// dot returns the dot product of w and the first len(w) elements of z.
func dot(w []float32, z []float64) float64 {
	sum := 0.0
	for i, v := range w {
		sum += float64(v) * z[i]
	}
	return sum
}
