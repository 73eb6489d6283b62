// Package patches fits reference statistics to the feature maps of normal images: a
// Gaussian for each patch (PaDiM), a Gaussian of features pooled over all patches, and
// nearest neighbours of pooled features. Extracting features does not belong here.
//
// Every fit is cross-fitted: there is a fit to all images, and for each fold a fit to the
// images outside the fold, so that each image can be scored by a fit without it. Image k
// is in fold k%folds. The result has folds+1 elements: element i < folds is the fit without
// fold i, and the last is the fit to all images.
//
// Sums are computed in float64 and stored in float32. No result depends on the number
// of threads.
package patches

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

var (
	// ErrTooFew is returned if a fit has fewer than 2 images.
	ErrTooFew = errors.New("patches: too few images")
	// ErrValues is returned if a feature is not finite, or if the range of features is
	// too large for the computation.
	ErrValues = errors.New("patches: features are not finite")
)

const (
	// relativeFloor is the share of the mean variance that is added to each variance, so
	// that a constant feature does not dominate distances.
	relativeFloor = 1e-6
	// roundingFloor is the standard deviation of features, relative to their root mean
	// square, below which images count as identical. Runtimes differ by less because of
	// rounding. The root mean square is then used as standard deviation, so that rounding
	// causes no distance.
	roundingFloor = 1e-4
)

// Map is the shape of an image's feature map, Channels×H×W. Patches are numbered row by
// row.
type Map struct{ Channels, W, H int }

// Patches returns the number of patches of the map.
func (m Map) Patches() int { return m.W * m.H }

// Len returns the number of features of the map.
func (m Map) Len() int { return m.Channels * m.Patches() }

// partition divides n images into groups, one for each fold.
type partition struct{ n, folds int }

// groups returns the number of groups. Without folds there is one.
func (p partition) groups() int { return max(p.folds, 1) }

// fits returns the number of fits.
func (p partition) fits() int { return p.folds + 1 }

// group returns the number of images of a group.
func (p partition) group(g int) int { return (p.n - g + p.groups() - 1) / p.groups() }

// size returns the number of images of a fit.
func (p partition) size(fit int) int {
	if fit == p.folds {
		return p.n
	}
	return p.n - p.group(fit)
}

// has reports whether a fit includes an image.
func (p partition) has(fit, image int) bool { return fit == p.folds || image%p.folds != fit }

// check returns the partition of the images, or an error if they cannot be fitted.
func check(m Map, images [][]float32, folds int) (partition, error) {
	p := partition{len(images), folds}
	if m.Channels < 1 || m.W < 1 || m.H < 1 || folds < 0 {
		return p, fmt.Errorf("patches: cannot fit %d×%d×%d features in %d folds", m.Channels, m.H, m.W, folds)
	}
	// The sizes of groups differ by one at most, and the first is the largest.
	if p.size(0) < 2 {
		return p, fmt.Errorf("%w: %d in %d folds leave %d for a fit", ErrTooFew, p.n, folds, p.size(0))
	}
	for k, image := range images {
		if len(image) != m.Len() {
			return p, fmt.Errorf("patches: image %d has %d features, not %d×%d×%d", k, len(image), m.Channels, m.H, m.W)
		}
		for i, v := range image {
			if v-v != 0 { // NaN or an infinity
				return p, fmt.Errorf("%w: image %d has %v in channel %d", ErrValues, k, v, i/m.Patches())
			}
		}
	}
	return p, nil
}

// floor returns a positive value to add to variances, given their mean and the features'
// mean square.
func floor(variance, square float64) float64 {
	f := relativeFloor * variance
	if variance < roundingFloor*roundingFloor*square {
		f = square
	}
	if f < math.SmallestNonzeroFloat32 {
		return relativeFloor
	}
	return f
}

// narrow converts numbers to float32. It returns ErrValues if a result is not finite.
func narrow(x []float64) ([]float32, error) {
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = float32(v)
	}
	if slices.ContainsFunc(out, func(v float32) bool { return v-v != 0 }) {
		return nil, fmt.Errorf("%w after scaling", ErrValues)
	}
	return out, nil
}

// narrowAll stores each slice of from, converted to float32, in to.
func narrowAll(to []*[]float32, from ...[]float64) (err error) {
	for i, x := range from {
		if *to[i], err = narrow(x); err != nil {
			return err
		}
	}
	return nil
}
