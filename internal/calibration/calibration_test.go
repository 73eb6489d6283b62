package calibration

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/models"
)

func TestFitScores_ReturnsTheConformalQuantile(t *testing.T) {
	for _, c := range []struct {
		n                        int
		rate, threshold, minRate float64
	}{
		{99, 0.05, 95, 0.01},
		{99, 0.01, 99, 0.01},
		{99, 0.001, 99, 0.01}, // too few images: the highest score
		{19, 0.05, 19, 0.05},
		{10, 0.05, 10, 1.0 / 11},
		{100, 0.5, 51, 1.0 / 101},
		{8, 0.999, 1, 1.0 / 9},
	} {
		scores := make([]float64, c.n)
		for i := range scores {
			scores[(i*7)%c.n] = float64(i + 1) // in some order
		}
		got, err := FitScores(scores, c.rate)
		if err != nil {
			t.Fatal(err)
		}
		if got.Threshold != c.threshold*(1+RoundingShare) || math.Abs(got.MinFalseAlarmRate-c.minRate) > 1e-12 || got.FalseAlarmRate != c.rate || len(got.Scores) != c.n {
			t.Errorf("%d images, rate %v: %+v, expected threshold %v", c.n, c.rate, got, c.threshold)
		}
	}
}

// exchangeable returns random member scores of an image. The members are correlated, and
// one has heavy tails.
func exchangeable(r *rand.Rand, members int) []float64 {
	common := r.NormFloat64()
	raw := make([]float64, members)
	for m := range raw {
		raw[m] = 3 + float64(m)*(common+r.NormFloat64())
	}
	raw[0] = math.Exp(1.5 * r.NormFloat64())
	return raw
}

func TestFit_KeepsTheFalseAlarmRateOnExchangeableImages(t *testing.T) {
	const members, rate = 8, 0.05
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		n       int
		weights []float64
	}{{20, nil}, {50, nil}, {200, nil}, {50, []float64{1, 2, 3, 4, 5, 6, 7, 0}}} {
		alarms, all := 0, 0
		for range 400 {
			raw := make([][]float64, c.n)
			for i := range raw {
				raw[i] = exchangeable(r, members)
			}
			fit, err := Fit(raw, c.weights, rate)
			if err != nil {
				t.Fatal(err)
			}
			for range 50 {
				all++
				if fit.Join(exchangeable(r, members)) > fit.Threshold {
					alarms++
				}
			}
		}
		// 20,000 images, 50 for each threshold.
		if got := float64(alarms) / float64(all); got > rate+0.008 || got < rate-0.02 {
			t.Errorf("%d images: false alarm rate %.4f, expected %v", c.n, got, rate)
		}
	}
}

// An outlier widens its own scale, so its score is lower than with Fit, and the threshold
// with it. What the model computes is the same.
func TestFitCrossFitted_DiffersFromFitOnlyInTheThreshold(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	raw := make([][]float64, 20)
	for i := range raw {
		raw[i] = []float64{r.NormFloat64(), r.NormFloat64()}
	}
	raw[7] = []float64{5, 5}
	fit, err := Fit(raw, nil, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	crossFitted, err := FitCrossFitted(raw, nil, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	if crossFitted.Threshold >= fit.Threshold {
		t.Errorf("threshold %v, expected less than %v", crossFitted.Threshold, fit.Threshold)
	}
	if got, want := crossFitted.Threshold, crossFitted.Join(raw[7])*(1+RoundingShare); got != want {
		t.Errorf("threshold %v, expected the outlier's score %v", got, want)
	}
	if !slices.Equal(crossFitted.Offsets, fit.Offsets) || !slices.Equal(crossFitted.Slopes, fit.Slopes) || !slices.Equal(crossFitted.Weights, fit.Weights) {
		t.Errorf("%+v and %+v", crossFitted, fit)
	}
}

func TestJoin_RoundsToFloat32(t *testing.T) {
	raw := make([][]float64, 20)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range raw {
		raw[i] = exchangeable(r, 6)
	}
	c, err := Fit(raw, []float64{1, 1, 2, 0, 1, 1}, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range raw {
		var sum float32
		for m := range row {
			a := float32(row[m]) - c.Offsets[m]
			b := a * c.Slopes[m]
			w := b * c.Weights[m]
			sum = sum + w
		}
		want := math.Log1p(math.Exp(float64(gain * sum)))
		if got := c.Join(row); math.Abs(got-want) > 1e-6*want || got != float64(float32(got)) || got <= 0 {
			t.Errorf("%v, expected %v", got, want)
		}
	}
	if c.Weights[3] != 0 || c.Weights[2] != 2*c.Weights[0] {
		t.Errorf("weights %v", c.Weights)
	}
}

func TestScore_IsPositiveAndIncreases(t *testing.T) {
	last := 0.0
	for z := float32(-20); z <= 200; z += 0.5 {
		s := score(z)
		if s <= last || math.IsInf(s, 0) {
			t.Fatalf("score(%v) = %v, after %v", z, s, last)
		}
		last = s
	}
}

func TestFit_AcceptsIdenticalImages(t *testing.T) {
	raw := make([][]float64, 10)
	for i := range raw {
		raw[i] = []float64{2.5, -1}
	}
	c, err := Fit(raw, nil, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Join(raw[0]); s > c.Threshold {
		t.Errorf("%v is above the threshold of %v", s, c.Threshold)
	}
	if s := c.Join([]float64{2.6, -0.9}); s <= c.Threshold {
		t.Errorf("a different image is normal with score %v", s)
	}
}

func TestFit_RejectsUnusableValues(t *testing.T) {
	rows := func(n int, row ...float64) [][]float64 {
		out := make([][]float64, n)
		for i := range out {
			out[i] = row
		}
		return out
	}
	for name, c := range map[string]struct {
		raw     [][]float64
		weights []float64
		rate    float64
		want    error
	}{
		"none":                {nil, nil, 0.05, ErrTooFew},
		"seven images":        {rows(7, 1, 2), nil, 0.05, ErrTooFew},
		"a rate of 0":         {rows(8, 1), nil, 0, ErrRate},
		"a rate of 1":         {rows(8, 1), nil, 1, ErrRate},
		"a rate that is NaN":  {rows(8, 1), nil, math.NaN(), ErrRate},
		"no members":          {rows(8), nil, 0.05, ErrValues},
		"rows of two lengths": {append(rows(8, 1, 2), []float64{1}), nil, 0.05, ErrValues},
		"NaN":                 {rows(8, math.NaN()), nil, 0.05, ErrValues},
		"infinite":            {rows(8, math.Inf(1)), nil, 0.05, ErrValues},
		"beyond float32":      {rows(8, 1e39), nil, 0.05, ErrValues},
		"one weight of two":   {rows(8, 1, 2), []float64{1}, 0.05, ErrValues},
		"a negative weight":   {rows(8, 1, 2), []float64{2, -1}, 0.05, ErrValues},
		"weights of 0":        {rows(8, 1, 2), []float64{0, 0}, 0.05, ErrValues},
	} {
		if _, err := Fit(c.raw, c.weights, c.rate); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, expected %v", name, err, c.want)
		}
	}
}

func TestDecision_HasTheScoresAndIsValid(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{8, 101, 102, 1000} {
		scores := make([]float64, n)
		for i := range scores {
			scores[i] = math.Exp(r.NormFloat64())
		}
		c, err := FitScores(scores, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		d := c.Decision(models.MeasureMSE)
		md := models.Metadata{Threshold: 1, Decision: &d}
		if err := md.Validate(); err != nil {
			t.Error(err)
		}
		slices.Sort(scores)
		if len(d.Scores) != min(n, models.MaxScores) || d.Scores[0] != scores[0] || d.Scores[len(d.Scores)-1] != scores[n-1] || d.CalibrationImages != n {
			t.Errorf("%d images: %d scores, %+v", n, len(d.Scores), d)
		}
	}
}
