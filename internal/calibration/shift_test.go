package calibration

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
	"gonum.org/v1/gonum/stat"
)

// draw returns n normally distributed values, ascending.
func draw(r *rand.Rand, n int, shift float64) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = shift + r.NormFloat64()
	}
	slices.Sort(out)
	return out
}

// For few scores permutations approximate the exact p-values; for many, the asymptotic
// distributions are compared with tables.
func TestTwoSample_MatchesPublishedPValues(t *testing.T) {
	// Of the 20 ways to choose three of six values, two are as extreme as this one.
	u, d := twoSample([]float64{1, 2, 3}, []float64{4, 5, 6})
	if want := 2.0 / 20; math.Abs(u-want) > 0.01 || math.Abs(d-want) > 0.01 {
		t.Errorf("%v and %v, expected %v", u, d, want)
	}
	// The asymptotic distribution: Q(1.358) = 0.05, Q(1.628) = 0.01 (Smirnov, 1948).
	for x, want := range map[float64]float64{1.358: 0.05, 1.628: 0.01} {
		root := math.Sqrt(500.0)
		if got := kolmogorov(x/(root+0.12+0.11/root), 1000, 1000); math.Abs(got-want) > 2e-4 {
			t.Errorf("Q(%v) = %v, expected %v", x, got, want)
		}
	}
	// A rank sum two standard deviations from its mean has p = 0.0455.
	p := pool(draw(rand.New(rand.NewPCG(1, 1)), 100, 0), draw(rand.New(rand.NewPCG(1, 2)), 100, 0))
	if got, want := p.mannWhitney(2*math.Sqrt(100*100*201.0/12)+0.5), math.Erfc(math.Sqrt2); math.Abs(got-want) > 1e-12 {
		t.Errorf("%v, expected %v", got, want)
	}
}

// The distances agree with Gonum's, even with ties.
func TestDistance_MatchesGonum(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 200 {
		a, b := make([]float64, 1+r.IntN(12)), make([]float64, 1+r.IntN(40))
		for _, s := range [][]float64{a, b} {
			for i := range s {
				s[i] = float64(r.IntN(15))
			}
			slices.Sort(s)
		}
		p := pool(a, b)
		if got, want := p.distance(p.first), stat.KolmogorovSmirnov(a, nil, b, nil); math.Abs(got-want) > 1e-12 {
			t.Fatalf("%v of %v and %v, Gonum has %v", got, a, b, want)
		}
	}
}

func TestTwoSample_KeepsTheSignificanceLevel(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for _, c := range []struct{ n, m, rounds int }{{60, 10, 150}, {60, 40, 600}, {500, 300, 300}} {
		const level = 0.05
		ranks, distances := 0, 0
		for range c.rounds {
			u, d := twoSample(draw(r, c.n, 0), draw(r, c.m, 0))
			if u < level {
				ranks++
			}
			if d < level {
				distances++
			}
		}
		most := int(float64(c.rounds) * (level + 3.5*math.Sqrt(level*(1-level)/float64(c.rounds))))
		if ranks > most || distances > most {
			t.Errorf("%d and %d: %d and %d of %d below %v", c.n, c.m, ranks, distances, c.rounds, level)
		}
	}
}

func TestCompare_DetectsShifts(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	for _, c := range []struct {
		name        string
		calibration int
		images      int
		shift       float64
		significant bool
	}{
		{"alike", 60, 40, 0, false},
		{"alike, of a large calibration", 2000, 400, 0, false},
		{"higher", 60, 40, 1.5, true},
		{"lower", 60, 40, -1.5, true},
		{"few and far", 60, 10, 3, true},
		{"of quantiles, higher", 2000, 100, 0.7, true},
	} {
		fit, err := FitScores(draw(r, c.calibration, 10), 0.05)
		if err != nil {
			t.Fatal(err)
		}
		d := fit.Decision(models.MeasureMSE)
		ref, ok := ReferenceOf(&d)
		if !ok {
			t.Fatal("the decision has no scores")
		}
		batch := draw(r, c.images, 10+c.shift)
		s := ref.Compare(batch)
		if s.Significant() != c.significant || math.Abs(s.Deviations-c.shift) > 0.6 || s.Images != c.images || s.CalibrationImages != c.calibration {
			t.Errorf("%s: %+v", c.name, s)
		}
		if again := ref.Compare(batch); again != s {
			t.Errorf("%s: %+v, the second time %+v", c.name, s, again)
		}
		word := "above"
		if s.Deviations < 0 {
			word = "below"
		}
		if !strings.Contains(s.String(), word) {
			t.Errorf("%s: %s", c.name, s)
		}
	}
}

func TestCompare_AcceptsBatchesOfOneValue(t *testing.T) {
	for _, n := range []int{1, 2, 30} {
		same := slices.Repeat([]float64{1}, 30)
		s := Reference{same, 1}.Compare(slices.Repeat([]float64{1}, n))
		if s.MannWhitney != 1 || s.KolmogorovSmirnov != 1 || s.Deviations != 0 || s.Above.Share != 0 || s.Significant() {
			t.Errorf("%d equal scores: %+v", n, s)
		}
		s = Reference{same, 1}.Compare(slices.Repeat([]float64{2}, n))
		if math.IsNaN(s.Deviations) || s.Above.Share != 1 || s.Significant() != (n > 1) {
			t.Errorf("%d higher scores: %+v", n, s)
		}
	}
}

func TestShareAbove_ReturnsClopperPearsonIntervals(t *testing.T) {
	for _, c := range []struct {
		above, n  int
		low, high float64
	}{
		{0, 10, 0, 0.3085}, {10, 10, 0.6915, 1}, {5, 10, 0.1871, 0.8129}, {4, 20, 0.0573, 0.4366},
	} {
		scores := slices.Concat(slices.Repeat([]float64{2}, c.above), slices.Repeat([]float64{1}, c.n-c.above))
		s := ShareAbove(scores, 1)
		if s.Share != float64(c.above)/float64(c.n) || math.Abs(s.Low-c.low) > 1e-4 || math.Abs(s.High-c.high) > 1e-4 {
			t.Errorf("%d of %d: %+v", c.above, c.n, s)
		}
	}
}

func TestReferenceOf_RejectsDecisionsWithoutScores(t *testing.T) {
	for name, d := range map[string]*models.Decision{
		"no decision": nil, "no scores": {CalibrationImages: 60}, "one score": {CalibrationImages: 1, Scores: []float64{1}},
	} {
		if _, ok := ReferenceOf(d); ok {
			t.Errorf("%s: accepted", name)
		}
	}
	// A huge number of images in a model file must not allocate memory.
	r, ok := ReferenceOf(&models.Decision{CalibrationImages: math.MaxInt, Scores: []float64{-math.MaxFloat64, math.MaxFloat64}})
	if !ok || len(r.scores) != maxReference || !slices.IsSorted(r.scores) {
		t.Errorf("%d scores", len(r.scores))
	}
}
