package patches

import (
	"math"
	"math/rand/v2"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/lapack/gonum"
)

// inverseSteps is the number of inverse iterations for an eigenvector. The shifts are
// accurate eigenvalues, so two iterations converge. The third helps if the start vector
// has a small component along the eigenvector.
const inverseSteps = 3

// leading computes the largest eigenvalues of symmetric n×n matrices and their
// eigenvectors. It reduces the matrix to tridiagonal form by Householder reflections,
// computes all eigenvalues by the implicit QL method and a few eigenvectors by inverse
// iteration (Golub and Van Loan, Matrix Computations, 8.2 and 8.3). A full decomposition
// spends most of its time on accumulating n² rotations in all n eigenvectors. leading is
// not safe for concurrent use.
type leading struct {
	n                int
	diagonal, off    []float64 // of the tridiagonal matrix
	values           []float64 // ascending
	beta             []float64 // H_i = I − beta_i·v·vᵀ with v = row i of the matrix
	p, scratch       []float64
	pivot, up, upper []float64
	low              []float64
	start            []float64
}

func newLeading(n int) *leading {
	l := &leading{n: n}
	for _, s := range []*[]float64{&l.diagonal, &l.off, &l.values, &l.beta, &l.p, &l.scratch, &l.pivot, &l.up, &l.upper, &l.low, &l.start} {
		*s = make([]float64, n)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range l.start {
		l.start[i] = random.Float64() - 0.5
	}
	return l
}

// reduce reduces a matrix, of which it reads the lower triangle only, to tridiagonal form
// and computes its eigenvalues. It stores the reflections in the matrix. It reports
// whether the eigenvalues converged.
func (l *leading) reduce(a []float64) bool {
	n := l.n
	for i := n - 1; i > 0; i-- {
		v := a[i*n : i*n+i]
		l.diagonal[i] = a[i*n+i]
		last := v[i-1]
		rest := floats.Dot(v[:i-1], v[:i-1])
		if rest < 1e-280 { // practically zero; its inverse would overflow
			l.beta[i], l.off[i-1] = 0, last
			continue
		}
		target := -math.Copysign(math.Sqrt(last*last+rest), last)
		v[i-1] = last - target
		beta := 2 / (rest + v[i-1]*v[i-1])
		l.beta[i], l.off[i-1] = beta, target
		// A ← H·A·H = A − v·wᵀ − w·vᵀ for the leading i×i submatrix.
		w := l.p[:i]
		clear(w)
		for j := range i {
			row := a[j*n : j*n+j+1]
			w[j] += floats.Dot(row, v[:j+1])
			floats.AddScaled(w[:j], v[j], row[:j])
		}
		floats.Scale(beta, w)
		floats.AddScaled(w, -beta/2*floats.Dot(w, v), v)
		for j := range i {
			row := a[j*n : j*n+j+1]
			floats.AddScaled(row, -v[j], w[:j+1])
			floats.AddScaled(row, -w[j], v[:j+1])
		}
	}
	l.diagonal[0] = a[0]
	copy(l.values, l.diagonal)
	copy(l.scratch, l.off)
	return gonum.Implementation{}.Dsterf(n, l.values, l.scratch[:n-1])
}

// value returns the ith largest eigenvalue of the matrix last reduced.
func (l *leading) value(i int) float64 { return l.values[l.n-1-i] }

// vectors computes the eigenvectors of the largest eigenvalues of the matrix a last
// reduced, one in each row of out.
func (l *leading) vectors(a []float64, out [][]float64) {
	n := l.n
	size := 0.0
	for i, d := range l.diagonal {
		size = max(size, math.Abs(d))
		if i+1 < n {
			size = max(size, math.Abs(l.off[i]))
		}
	}
	tiny := max(size*0x1p-52, math.SmallestNonzeroFloat32)
	shift := math.Inf(1)
	for i, z := range out {
		// Separate equal eigenvalues a little. Otherwise the iteration would converge to
		// an earlier vector, and orthogonalization would leave only rounding errors.
		shift = min(l.value(i), shift-10*tiny)
		copy(z, l.start)
		for range inverseSteps {
			l.solve(shift, tiny, z)
			for range 2 { // twice, because of cancellation (Kahan and Parlett)
				for _, other := range out[:i] {
					floats.AddScaled(z, -floats.Dot(other, z), other)
				}
				floats.Scale(1/floats.Norm(z, 2), z)
			}
		}
	}
	for i := 1; i < n; i++ {
		v := a[i*n : i*n+i]
		for _, z := range out {
			floats.AddScaled(z[:i], -l.beta[i]*floats.Dot(v, z[:i]), v)
		}
	}
}

// solve replaces z by the solution of (T − shift·I)·x = z, with partial pivoting. It
// replaces pivots below tiny by tiny, because the matrix is nearly singular.
func (l *leading) solve(shift, tiny float64, z []float64) {
	n := l.n
	d, u, uu, low := l.pivot, l.up, l.upper, l.low
	for i := range n {
		d[i] = l.diagonal[i] - shift
	}
	copy(u, l.off[:n-1])
	copy(low, l.off[:n-1])
	clear(uu)
	for i := range n - 1 {
		if math.Abs(d[i]) >= math.Abs(low[i]) {
			d[i] = atLeast(d[i], tiny)
			f := low[i] / d[i]
			d[i+1] -= f * u[i]
			z[i+1] -= f * z[i]
			continue
		}
		f := d[i] / low[i]
		d[i], u[i], d[i+1] = low[i], d[i+1], u[i]-f*d[i+1]
		if i < n-2 {
			uu[i] = u[i+1]
			u[i+1] *= -f
		}
		z[i], z[i+1] = z[i+1], z[i]-f*z[i+1]
		d[i] = atLeast(d[i], tiny)
	}
	z[n-1] /= atLeast(d[n-1], tiny)
	for i := n - 2; i >= 0; i-- {
		v := z[i] - u[i]*z[i+1]
		if i < n-2 {
			v -= uu[i] * z[i+2]
		}
		z[i] = v / d[i]
	}
}

// atLeast returns v if its absolute value is at least tiny, and ±tiny otherwise.
func atLeast(v, tiny float64) float64 {
	if math.Abs(v) < tiny {
		return math.Copysign(tiny, v)
	}
	return v
}
