package patches

import (
	"math"

	"gonum.org/v1/gonum/floats"
)

// few reports whether a patch's eigenvectors are computed from the Gram matrix of its n
// images, n×n, instead of the covariance, C×C. That is faster for at most three images
// per four channels. Both have the same nonzero eigenvalues (Turk and Pentland,
// "Eigenfaces for Recognition", 1991).
func (p partition) few(channels int) bool { return 4*p.n <= 3*channels }

// sumFew computes the sums of features of a loaded patch, without sums of products.
func (s *sums) sumFew(patch int) {
	c, n := s.m.Channels, s.p.n
	features := s.features[patch*c*n : (patch+1)*c*n]
	for g := range s.linear {
		for i := range c {
			s.linear[g][i] = floats.Sum(features[i*n+s.starts[g] : i*n+s.starts[g+1]])
		}
	}
}

// deviations returns the deviations of a fit's images from its mean for a loaded patch,
// images×channels. It stores them in out.
func (s *sums) deviations(out []float64, patch, fit int) []float64 {
	c, n := s.m.Channels, s.p.n
	features := s.features[patch*c*n : (patch+1)*c*n]
	rest := float64(s.p.size(fit))
	out = out[:0]
	for k := range n {
		if fit < s.p.folds && k >= s.starts[fit] && k < s.starts[fit+1] {
			continue
		}
		for i := range c {
			v := features[i*n+k]
			if fit < s.p.folds {
				v += s.linear[fit][i] / rest // minus the mean of the other images
			}
			out = append(out, v)
		}
	}
	return out
}

// solveFew computes the eigenvalues of a patch from its images' deviations. It sets
// w.leading to that of the Gram matrix.
func (w *worker) solveFew(whitening, deviations []float64) (trace float64, ok bool) {
	c := w.c
	n := len(deviations) / c
	w.white = append(w.white[:0], deviations...)
	for k := range n {
		d, y := deviations[k*c:(k+1)*c], w.white[k*c:(k+1)*c]
		for i := range c {
			y[i] = floats.Dot(whitening[i*c:i*c+i+1], d[:i+1])
		}
	}
	gram := w.product[:n*n]
	for i := range n {
		for j := range i + 1 {
			gram[i*n+j] = floats.Dot(w.white[i*c:(i+1)*c], w.white[j*c:(j+1)*c]) / float64(n-1)
		}
		trace += gram[i*n+i]
	}
	if w.byImages[n] == nil {
		w.byImages[n] = newLeading(n)
	}
	w.leading = w.byImages[n]
	return trace, w.leading.reduce(gram)
}

// vectorsFew computes the leading eigenvectors of the patch that solveFew was last called
// for.
func (w *worker) vectorsFew(out [][]float64) {
	c, n := w.c, w.leading.n
	inner := make([][]float64, len(out))
	for i := range inner {
		inner[i] = make([]float64, n)
	}
	w.leading.vectors(w.product[:n*n], inner)
	for i, u := range out {
		clear(u)
		for k, v := range inner[i] {
			floats.AddScaled(u, v, w.white[k*c:(k+1)*c])
		}
		if length := floats.Norm(u, 2); length > 0 {
			floats.Scale(1/length, u)
		}
	}
}

// leadingValue returns the ith largest eigenvalue, or zero if there are fewer.
func (w *worker) leadingValue(i int) float64 {
	if i >= w.leading.n {
		return 0
	}
	v := w.leading.value(i)
	if math.IsNaN(v) {
		return 0
	}
	return max(v, 0)
}
