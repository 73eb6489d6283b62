package calibration

import (
	"errors"
	"fmt"
	"math"
	"sort"

	"github.com/deepmed/anomaly/models"
)

// ErrRateTooLow is returned, wrapped, for a false alarm rate below the minimum achievable
// false alarm rate of a calibration.
var ErrRateTooLow = errors.New("the false alarm rate is too low for the calibration images")

// maxCount bounds the number of calibration images in a model file, which cannot be
// trusted.
const maxCount = 1 << 40

// Ranks are the calibration scores in a model: all n of them, or equally spaced quantiles
// if n is larger than models.MaxScores. Of quantiles, the rank of a value is known up to
// the scores between two of them. Both methods then err on the side of fewer false alarms.
type Ranks struct {
	scores []float64 // ascending, at least two
	n      int
}

// RanksOf returns the calibration scores in a model's decision, and false if it has none.
func RanksOf(d *models.Decision) (Ranks, bool) {
	if d == nil || len(d.Scores) < 2 {
		return Ranks{}, false
	}
	return Ranks{d.Scores, max(min(d.CalibrationImages, maxCount), len(d.Scores))}, true
}

// Count returns the number n of calibration images.
func (r Ranks) Count() int { return r.n }

// Scores returns the scores or quantiles, ascending. They must not be changed.
func (r Ranks) Scores() []float64 { return r.scores }

// MinRate returns the minimum achievable false alarm rate, 1/(n+1).
func (r Ranks) MinRate() float64 { return 1 / float64(r.n+1) }

// Position returns the position of score i of count among n ascending scores, from 0 to
// n−1: a whole number if the score is one of the n, and between two whole numbers if it
// was interpolated.
func Position(i, count, n int) float64 { return float64(i) * float64(n-1) / float64(count-1) }

// Threshold returns the conformal threshold for a false alarm rate between 0 and 1, as a
// training computes it. If the ⌈(n+1)(1−rate)⌉th smallest score is not known, it uses the
// next larger quantile. It returns ErrRate, and ErrRateTooLow for a rate below MinRate.
func (r Ranks) Threshold(rate float64) (float64, error) {
	if !(rate > 0 && rate < 1) {
		return 0, fmt.Errorf("%w: %v, expected a number between 0 and 1", ErrRate, rate)
	}
	const rounding = 1e-9
	if rate < r.MinRate()*(1-rounding) {
		return 0, fmt.Errorf("%w: %d images support %.4g at best, not %.4g; calibrate on more images or choose a higher rate", ErrRateTooLow, r.n, r.MinRate(), rate)
	}
	rank := math.Ceil(float64(r.n+1)*(1-rate) - rounding)
	i := sort.Search(len(r.scores)-1, func(i int) bool { return math.Floor(Position(i, len(r.scores), r.n)) >= rank-1 })
	return r.scores[i] * (1 + RoundingShare), nil
}

// Rate returns the false alarm rate that a threshold promises: (n+1−k)/(n+1) for k scores
// that are not above it. It is 1, no promise, for a threshold below all scores.
func (r Ranks) Rate(threshold float64) float64 {
	i := sort.Search(len(r.scores), func(i int) bool { return r.scores[i] > threshold })
	k := 0.0
	if i > 0 {
		k = math.Floor(Position(i-1, len(r.scores), r.n)) + 1
	}
	return (float64(r.n+1) - k) / float64(r.n+1)
}
