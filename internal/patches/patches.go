// Package patches describes normal images by statistics of their patch features:
// a Gaussian for each place (PaDiM), a Gaussian of the mean over all places, and
// nearest neighbours of that mean. It knows nothing of where the features came
// from.
//
// Every fit is made several times at once: of all images, and for each fold of all
// images but the fold's, so that each image can be judged by a fit that has not
// seen it. Image k lies in fold k%folds. The result has folds+1 elements: element
// i < folds is without fold i, and the last is of all images.
//
// Sums are computed in float64 and stored in float32. No result depends on the
// number of threads.
package patches

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

var (
	// ErrTooFew is returned if a fit would have fewer than 2 images.
	ErrTooFew = errors.New("patches: too few images")
	// ErrValues is returned if a feature is not finite, or if the features' spread
	// is beyond what can be computed.
	ErrValues = errors.New("patches: features are not finite")
)

const (
	// relativeFloor is added to variances as a share of their mean, so that a
	// feature that never varied doesn't decide alone.
	relativeFloor = 1e-6
	// roundingFloor is the deviation of features, relative to their root mean square,
	// below which images are all alike: one runtime's rounding differs from another's
	// by less. Then their root mean square is taken for the deviation, so that
	// rounding is no distance.
	roundingFloor = 1e-4
)

// Map is the shape of an image's feature map: Channels×Side×Side numbers, channels
// first. Patches are numbered row by row.
type Map struct{ Channels, Side int }

// Patches returns the number of places of the map.
func (m Map) Patches() int { return m.Side * m.Side }

// Len returns the number of features of the map.
func (m Map) Len() int { return m.Channels * m.Patches() }

// partition divides n images into groups, one for each fold, and says which fits
// are made of them.
type partition struct{ n, folds int }

// groups returns the number of groups. Without folds all images are one group.
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

// has reports whether the fit is made of the image, among others.
func (p partition) has(fit, image int) bool { return fit == p.folds || image%p.folds != fit }

// check returns how the images are divided, or why no fit can be made of them.
func check(m Map, images [][]float32, folds int) (partition, error) {
	p := partition{len(images), folds}
	if m.Channels < 1 || m.Side < 1 || folds < 0 {
		return p, fmt.Errorf("patches: no fit of %d×%d×%d features in %d folds", m.Channels, m.Side, m.Side, folds)
	}
	// The groups' sizes differ by one at most, and the first is the largest.
	if p.size(0) < 2 {
		return p, fmt.Errorf("%w: %d in %d folds leave %d to a fit", ErrTooFew, p.n, folds, p.size(0))
	}
	for k, image := range images {
		if len(image) != m.Len() {
			return p, fmt.Errorf("patches: image %d has %d features, not %d×%d×%d", k, len(image), m.Channels, m.Side, m.Side)
		}
		for i, v := range image {
			if v-v != 0 { // NaN or an infinity
				return p, fmt.Errorf("%w: image %d has %v in channel %d", ErrValues, k, v, i/m.Patches())
			}
		}
	}
	return p, nil
}

// floor returns what is added to variances of that mean, of features with that mean
// square. It is positive.
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

// narrow returns the numbers in float32, or ErrValues if one is not finite there.
func narrow(x []float64) ([]float32, error) {
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = float32(v)
	}
	if slices.ContainsFunc(out, func(v float32) bool { return v-v != 0 }) {
		return nil, fmt.Errorf("%w once they are scaled", ErrValues)
	}
	return out, nil
}

// narrowAll stores each of the numbers in float32.
func narrowAll(to []*[]float32, from ...[]float64) (err error) {
	for i, x := range from {
		if *to[i], err = narrow(x); err != nil {
			return err
		}
	}
	return nil
}
