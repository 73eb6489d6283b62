package patches

import (
	"fmt"

	"gonum.org/v1/gonum/mat"
)

// inverseFactor returns the inverse of the lower Cholesky factor of an n×n
// covariance matrix, of which only the lower triangle is read. If W is the result,
// the squared Mahalanobis distance of d is |W·d|².
func inverseFactor(covariance []float64, n int) ([]float64, error) {
	m := mat.NewSymDense(n, nil)
	for i := range n {
		for j := range i + 1 {
			m.SetSym(i, j, covariance[i*n+j])
		}
	}
	var chol mat.Cholesky
	if !chol.Factorize(m) {
		return nil, fmt.Errorf("%w: their covariance is not positive definite", ErrValues)
	}
	var lower, inverse mat.TriDense
	chol.LTo(&lower)
	// A condition number that is too large is reported as an error beside a result.
	// The floors bound it by about 1e8, for which float64 suffices.
	_ = inverse.InverseTri(&lower)
	out := make([]float64, n*n)
	for i := range n {
		for j := range i + 1 {
			out[i*n+j] = inverse.At(i, j)
		}
	}
	return out, nil
}
