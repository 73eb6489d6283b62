package patches

import (
	"fmt"

	"gonum.org/v1/gonum/mat"
)

// inverseFactor returns W, the inverse of the lower Cholesky factor of an n×n covariance
// matrix, of which it reads the lower triangle only. The squared Mahalanobis distance of
// d is |W·d|².
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
	// InverseTri returns a result and an error if the condition number is large. The
	// floors of variances bound it by about 1e8, which float64 allows.
	_ = inverse.InverseTri(&lower)
	out := make([]float64, n*n)
	for i := range n {
		for j := range i + 1 {
			out[i*n+j] = inverse.At(i, j)
		}
	}
	return out, nil
}
