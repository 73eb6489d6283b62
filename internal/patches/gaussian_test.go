package patches

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/workers"
	"gonum.org/v1/gonum/mat"
)

// Distances stores the squared Mahalanobis distance of each patch of feature map x in out.
func (g *Gaussian) Distances(out, x []float32) {
	g.each(x, func(patch int, d float64) { out[patch] = float32(d) })
}

// direct computes the squared distance of each patch of x by the definition, with full
// eigendecompositions.
func direct(t *testing.T, m Map, images [][]float32, rank int, x []float32) []float64 {
	t.Helper()
	c, patches, n := m.Channels, m.Patches(), len(images)
	rank = min(rank, c-1)
	mean := make([]float64, m.Len())
	for i := range mean {
		for _, image := range images {
			mean[i] += float64(image[i]) / float64(n)
		}
	}
	at := func(image []float32, p int) *mat.VecDense {
		v := mat.NewVecDense(c, nil)
		for i := range c {
			v.SetVec(i, float64(image[i*patches+p])-mean[i*patches+p])
		}
		return v
	}
	shared := mat.NewSymDense(c, nil)
	for p := range patches {
		for _, image := range images {
			shared.SymRankOne(shared, 1/float64(patches*(n-1)), at(image, p))
		}
	}
	variance := mat.Trace(shared) / float64(c)
	for i := range c {
		shared.SetSym(i, i, shared.At(i, i)*(1+ridge)+relativeFloor*variance)
	}
	var chol mat.Cholesky
	if !chol.Factorize(shared) {
		t.Fatal("no factor")
	}
	var lower mat.TriDense
	chol.LTo(&lower)
	whiten := func(v *mat.VecDense) *mat.VecDense {
		var y mat.VecDense
		if err := y.SolveVec(&lower, v); err != nil {
			t.Fatal(err)
		}
		return &y
	}
	out := make([]float64, patches)
	for p := range out {
		s := mat.NewSymDense(c, nil)
		for _, image := range images {
			s.SymRankOne(s, 1/float64(n-1), whiten(at(image, p)))
		}
		var eigen mat.EigenSym
		if !eigen.Factorize(s, true) {
			t.Fatal("no eigenvalues")
		}
		var vectors mat.Dense
		eigen.VectorsTo(&vectors)
		values := eigen.Values(nil)
		share := shrinkage
		rest := 0.0
		for _, v := range values[:c-rank] {
			rest += ((1-share)*v + share) / float64(c-rank)
		}
		y := whiten(at(x, p))
		for i, v := range values {
			along := mat.Dot(y, vectors.ColView(i))
			if i >= c-rank {
				out[p] += along * along / ((1-share)*v + share)
			} else {
				out[p] += along * along / rest
			}
		}
	}
	return out
}

func fit(t *testing.T, m Map, images [][]float32, folds, rank, threads int) []*Gaussian {
	t.Helper()
	g, err := FitGaussians(context.Background(), m, images, nil, folds, rank, workers.Pool{Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// without returns the images of a fit.
func without(images [][]float32, folds, fold int) [][]float32 {
	var out [][]float32
	for k, image := range images {
		if fold == folds || k%folds != fold {
			out = append(out, image)
		}
	}
	return out
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance*(1+math.Abs(want))) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestFitGaussians_AgreesWithFullDecompositions(t *testing.T) {
	for _, c := range []struct {
		m              Map
		n, folds, rank int
	}{
		{Map{6, 3, 3}, 23, 4, 2},
		{Map{6, 3, 3}, 23, 0, 2},
		{Map{6, 3, 3}, 9, 3, 5},
		{Map{6, 3, 3}, 4, 2, 5}, // fewer images than directions
		{Map{6, 3, 3}, 9, 2, 0},
		{Map{6, 3, 3}, 9, 2, 9},
		{Map{2, 1, 1}, 5, 1 + 1, 1},
		{Map{1, 4, 4}, 5, 2, 1},
		{Map{40, 4, 4}, 60, 3, 16},
		{Map{40, 4, 4}, 12, 3, 16},
		{Map{112, 2, 2}, 50, 0, 16},
	} {
		images := synthetic(c.m, c.n, 3)
		others := synthetic(c.m, 3, 4)
		others = append(others, images[0], images[c.n-1])
		out := make([]float32, c.m.Patches())
		for fold, g := range fit(t, c.m, images, c.folds, c.rank, 2) {
			for _, x := range others {
				want := direct(t, c.m, without(images, c.folds, fold), c.rank, x)
				g.Distances(out, x)
				for p, v := range out {
					near(t, "distance", float64(v), want[p], 1e-4)
				}
				near(t, "peak", g.Peak(x, nil), slices.Max(want), 1e-4)
			}
		}
	}
}

func TestFits_LeaveTheirFoldOut(t *testing.T) {
	m := Map{12, 5, 5}
	images := synthetic(m, 31, 5)
	const folds = 5
	pooled, err := FitPooled(m, images, nil, folds, workers.Pool{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	neighbours, err := FitNeighbours(m, images, nil, folds, 10, workers.Pool{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	for fold, g := range fit(t, m, images, folds, 4, 2) {
		rest := without(images, folds, fold)
		alone := fit(t, m, rest, 0, 4, 1)[0]
		p, err := FitPooled(m, rest, nil, 0, workers.Pool{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		q, err := FitNeighbours(m, rest, nil, 0, 10, workers.Pool{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		for k, x := range images {
			near(t, "peak", g.Peak(x, nil), alone.Peak(x, nil), 1e-4)
			if got, want := pooled[fold].Distance(x, nil), p[0].Distance(x, nil); got != want {
				t.Errorf("pooled, fold %d, image %d: %v, want %v", fold, k, got, want)
			}
			if got, want := neighbours[fold].Distance(x, nil), q[0].Distance(x, nil); got != want {
				t.Errorf("neighbours, fold %d, image %d: %v, want %v", fold, k, got, want)
			}
		}
	}
}

func TestFits_AreIdenticalOnAnyNumberOfThreads(t *testing.T) {
	m := Map{20, 7, 7}
	images := synthetic(m, 40, 6)
	one, err := FitNeighbours(m, images, nil, 3, 11, workers.Pool{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	p, err := FitPooled(m, images, nil, 3, workers.Pool{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	g := fit(t, m, images, 3, 6, 1)
	for _, threads := range []int{0, 2, 3, 8} {
		if !reflect.DeepEqual(g, fit(t, m, images, 3, 6, threads)) {
			t.Errorf("Gaussians differ on %d threads", threads)
		}
		if other, err := FitNeighbours(m, images, nil, 3, 11, workers.Pool{Threads: threads}); err != nil || !reflect.DeepEqual(one, other) {
			t.Errorf("neighbours differ on %d threads, %v", threads, err)
		}
		if other, err := FitPooled(m, images, nil, 3, workers.Pool{Threads: threads}); err != nil || !reflect.DeepEqual(p, other) {
			t.Errorf("pooled Gaussians differ on %d threads, %v", threads, err)
		}
	}
}

// finite fails the test if a number is not finite or is negative.
func finite(t *testing.T, what string, x ...float64) {
	t.Helper()
	for _, v := range x {
		if v-v != 0 || v < 0 {
			t.Errorf("%s: %v", what, v)
		}
	}
}

func TestFits_AcceptIdenticalImages(t *testing.T) {
	m := Map{8, 4, 4}
	for name, value := range map[string]func(i, k int) float32{
		"zero":              func(int, int) float32 { return 0 },
		"constant":          func(int, int) float32 { return 1e4 / 3. },
		"identical images":  func(i, _ int) float32 { return float32(math.Sin(float64(i))) },
		"constant channels": func(i, k int) float32 { return float32(i/m.Patches()%2) * float32(math.Sin(float64(i*k+k))) },
		"one other image":   func(i, k int) float32 { return float32(k / 9 * i) },
		"tiny":              func(i, k int) float32 { return float32(1e-30 * math.Sin(float64(i*k+k))) },
		"subnormal":         func(i, k int) float32 { return float32(1e-42 * math.Sin(float64(i*k+k))) },
		"huge":              func(i, k int) float32 { return float32(1e15 * math.Sin(float64(i*k+k))) },
	} {
		images := make([][]float32, 10)
		for k := range images {
			images[k] = make([]float32, m.Len())
			for i := range images[k] {
				images[k][i] = value(i, k)
			}
		}
		p, err := FitPooled(m, images, nil, 3, workers.Pool{Threads: 2})
		if err != nil {
			t.Fatal(name, err)
		}
		q, err := FitNeighbours(m, images, nil, 3, 4, workers.Pool{Threads: 2})
		if err != nil {
			t.Fatal(name, err)
		}
		out := make([]float32, m.Patches())
		for fold, g := range fit(t, m, images, 3, 4, 2) {
			for _, x := range images {
				g.Distances(out, x)
				for _, v := range out {
					finite(t, name, float64(v))
				}
				finite(t, name, g.Peak(x, nil), p[fold].Distance(x, nil), q[fold].Distance(x, nil))
			}
			if name == "identical images" && g.Peak(images[0], nil) > 1e-3 {
				t.Errorf("one of identical images has distance %v", g.Peak(images[0], nil))
			}
		}
	}
}

func TestFits_RejectUnusableImages(t *testing.T) {
	m := Map{3, 2, 2}
	bad := synthetic(m, 6, 1)
	bad[4][7] = float32(math.NaN())
	infinite := synthetic(m, 6, 1)
	infinite[0][0] = float32(math.Inf(-1))
	short := synthetic(m, 6, 1)
	short[2] = short[2][1:]
	for name, c := range map[string]struct {
		images [][]float32
		folds  int
		want   error
	}{
		"none":             {nil, 0, ErrTooFew},
		"one":              {synthetic(m, 1, 1), 0, ErrTooFew},
		"one fold":         {synthetic(m, 9, 1), 1, ErrTooFew},
		"one left":         {synthetic(m, 3, 1), 2, ErrTooFew},
		"not a number":     {bad, 2, ErrValues},
		"infinite":         {infinite, 0, ErrValues},
		"short":            {short, 2, nil},
		"folds below none": {synthetic(m, 3, 1), -1, nil},
	} {
		_, gaussians := FitGaussians(context.Background(), m, c.images, nil, c.folds, 2, workers.Pool{Threads: 2})
		_, pooled := FitPooled(m, c.images, nil, c.folds, workers.Pool{Threads: 2})
		_, neighbours := FitNeighbours(m, c.images, nil, c.folds, 3, workers.Pool{Threads: 2})
		for _, err := range []error{gaussians, pooled, neighbours} {
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
	}
	if _, err := FitNeighbours(m, synthetic(m, 5, 1), nil, 2, 0, workers.Pool{}); err == nil {
		t.Error("a bank of size 0 is accepted")
	}
}

func TestFitGaussians_EndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	m := Map{3, 4, 4}
	if _, err := FitGaussians(ctx, m, synthetic(m, 9, 1), nil, 2, 2, workers.Pool{Threads: 2}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestPeak_IsSafeForConcurrentUse(t *testing.T) {
	m := Map{10, 6, 6}
	images := synthetic(m, 20, 8)
	g := fit(t, m, images, 0, 3, 1)[0]
	want := make([]float64, len(images))
	for k, x := range images {
		want[k] = g.Peak(x, nil)
	}
	err := workers.Pool{Threads: 4}.EachWith(context.Background(), 200, func(context.Context) func(int) error {
		return func(task int) error {
			if k := task % len(images); g.Peak(images[k], nil) != want[k] {
				return errors.New("different distance")
			}
			return nil
		}
	})
	if err != nil {
		t.Error(err)
	}
}

func TestLeading_SolvesDegenerateMatrices(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	for name, values := range map[string][]float64{
		"one":      {1, 1, 1, 1, 1, 1, 1, 1},
		"two":      {3, 3, 3, 2, 2, 2, 2, 1},
		"rank one": {5, 0, 0, 0, 0, 0, 0, 0},
		"close":    {2, 2 + 1e-14, 2 - 1e-14, 1, 1e-14, 0, 0, 0},
	} {
		n := len(values)
		basis := mat.NewDense(n, n, nil)
		for i := range n {
			for j := range n {
				basis.Set(i, j, random.NormFloat64())
			}
		}
		var qr mat.QR
		qr.Factorize(basis)
		qr.QTo(basis)
		if name == "one" {
			basis = mat.DenseCopyOf(mat.NewDiagDense(n, values)) // zeros off the diagonal
		}
		full := mat.NewDense(n, n, nil)
		full.Mul(basis, mat.NewDiagDense(n, values))
		full.Mul(full, basis.T())
		a := slices.Clone(full.RawMatrix().Data)
		l := newLeading(n)
		if !l.reduce(a) {
			t.Fatal(name)
		}
		out := make([][]float64, 5)
		for i := range out {
			out[i] = make([]float64, n)
		}
		l.vectors(a, out)
		for i, u := range out {
			var product mat.VecDense
			product.MulVec(full, mat.NewVecDense(n, u))
			for j, v := range u {
				near(t, name+": A·u", product.AtVec(j), l.value(i)*v, 1e-10)
			}
			for j, other := range out[:i+1] {
				want := 0.0
				if i == j {
					want = 1
				}
				near(t, name+": orthogonal", mat.Dot(mat.NewVecDense(n, u), mat.NewVecDense(n, other)), want, 1e-12)
			}
		}
	}
}
