package calibration

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/models"
)

func TestRanks_ThresholdIsThatOfATraining(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{8, 20, 101, 102, 250, 1000} {
		scores := make([]float64, n)
		for i := range scores {
			scores[i] = rng.ExpFloat64()
		}
		for _, rate := range []float64{1 / float64(n+1), 0.02, 0.05, 0.1, 0.5, 0.9} {
			if rate < 1/float64(n+1) {
				continue
			}
			c, err := FitScores(scores, rate)
			if err != nil {
				t.Fatal(err)
			}
			d := c.Decision(models.MeasureMSE)
			r, ok := RanksOf(&d)
			got, err := r.Threshold(rate)
			if !ok || err != nil || r.Count() != n {
				t.Fatalf("%d images: %v, %v", n, ok, err)
			}
			if n <= models.MaxScores && got != c.Threshold || got < c.Threshold {
				t.Errorf("%d images at %v: %v, the training has %v", n, rate, got, c.Threshold)
			}
			// Of quantiles, the threshold is at most one quantile higher.
			exact := slices.Sorted(slices.Values(scores))
			above := 0
			for _, s := range exact {
				if s > got {
					above++
				}
			}
			if slack := rate - float64(above+1)/float64(n+1); slack < -1e-12 || slack > 0.0101+1/float64(n+1) {
				t.Errorf("%d images at %v: %d are above %v", n, rate, above, got)
			}
			if promised := r.Rate(got); promised > rate+1e-12 || promised < float64(above+1)/float64(n+1)-1e-12 {
				t.Errorf("%d images at %v: the threshold promises %v, %d are above", n, rate, promised, above)
			}
		}
		d := models.Decision{Scores: quantiles(slices.Sorted(slices.Values(scores)), models.MaxScores), CalibrationImages: n}
		r, _ := RanksOf(&d)
		if _, err := r.Threshold(0.99 / float64(n+1)); !errors.Is(err, ErrRateTooLow) {
			t.Errorf("%d images: %v", n, err)
		}
		for _, rate := range []float64{0, 1, -1, math.NaN(), math.Inf(1)} {
			if _, err := r.Threshold(rate); !errors.Is(err, ErrRate) {
				t.Errorf("rate %v: %v", rate, err)
			}
		}
		if r.Rate(0) != 1 || r.Rate(math.MaxFloat64) != r.MinRate() {
			t.Errorf("%d images: %v and %v", n, r.Rate(0), r.Rate(math.MaxFloat64))
		}
	}
	for _, d := range []*models.Decision{nil, {}, {Scores: []float64{1}}} {
		if _, ok := RanksOf(d); ok {
			t.Errorf("%+v has ranks", d)
		}
	}
}
