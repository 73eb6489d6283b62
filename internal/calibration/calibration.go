// Package calibration computes a model's threshold from member scores or anomaly scores
// of calibration images: normal images that the model was not trained on. It also tests
// whether the scores of later images are shifted. Images, graphs and files do not belong
// here.
package calibration

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/deepmed/anomaly/models"
)

const (
	// MinImages is the smallest number of calibration images.
	MinImages = 8
	// gain is the factor of the joined deviation x in the score ln(1+exp(x)). It scales
	// scores and changes no decision.
	gain = 1
	// RoundingShare is the share by which a threshold is raised. It is larger than the
	// difference between two runtimes by rounding (docs/interop.md) and smaller than the
	// difference between images. Without it, some of several identical images would be
	// anomalous.
	RoundingShare = 1e-4
	// deviationFloor is the smallest standard deviation of a member score, the logarithm
	// of a squared distance. That of identical images is 0.
	deviationFloor = 1e-2
)

// Errors of a calibration.
var (
	// ErrTooFew is returned, wrapped, for fewer than MinImages images.
	ErrTooFew = errors.New("too few normal images to calibrate on")
	// ErrRate is returned, wrapped, for a false alarm rate that is not between 0 and 1.
	ErrRate = errors.New("unusable false alarm rate")
	// ErrValues is returned, wrapped, if a score or weight is not finite, weights are
	// negative, or the images' numbers of members differ.
	ErrValues = errors.New("unusable values to calibrate on")
)

// Calibration is the threshold of an anomaly score, and how member scores are joined
// to it.
type Calibration struct {
	// Offsets, Slopes and Weights are by member. An image's deviation by a member is
	// (score − offset)·slope. The joined deviation is the mean of the deviations by
	// the weights, whose sum is 1. All three are empty in a calibration by FitScores.
	Offsets, Slopes, Weights []float32
	// Threshold is the anomaly score above which an image is anomalous.
	Threshold float64
	// FalseAlarmRate is the rate that Threshold is computed for. MinFalseAlarmRate is
	// the minimum achievable false alarm rate of n images, 1/(n+1).
	FalseAlarmRate, MinFalseAlarmRate float64
	// Scores are the anomaly scores of the images, ascending.
	Scores []float64
}

// Fit calibrates on the member scores of calibration images, images × members. Location
// and scale of each member are its mean and population standard deviation. The threshold
// is computed for the false alarm rate. If weights is nil, all members have the same
// weight. Fit returns ErrTooFew, ErrRate and ErrValues.
//
// Each calibration image is scored with a scale computed without it, because a later
// image is not part of the scale either, and an outlier would widen its own scale.
// Otherwise, with 20 images and a member with heavy tails, 6 % of later images were above
// the threshold instead of 5 %. The location is that of all images, since a constant
// does not change the order of scores.
func Fit(members [][]float64, weights []float64, rate float64) (*Calibration, error) {
	return fit(members, weights, rate, slopesWithout)
}

// FitCrossFitted is Fit for the images that the statistics of a model were fitted to, each
// scored by statistics fitted without it. It scores each with the scale of all images:
// with few images such scores are already higher than those of later images, because
// statistics without an image are also without what is special about it. With 20 images,
// 2.5 % of later images were above the threshold for 5 %, and 1.5 % with the scales of Fit
// (docs/detection.md).
func FitCrossFitted(members [][]float64, weights []float64, rate float64) (*Calibration, error) {
	return fit(members, weights, rate, func(values []float64, _, deviation float64) []float32 {
		return slices.Repeat([]float32{slope(deviation)}, len(values))
	})
}

// fit calibrates. slopes returns the slopes that each image is scored with, by the
// values of a member, their mean and their deviation.
func fit(members [][]float64, weights []float64, rate float64, slopes func(values []float64, mean, deviation float64) []float32) (*Calibration, error) {
	if err := checkCount(len(members)); err != nil {
		return nil, err
	}
	count := len(members[0])
	normalized, err := normalize(weights, count)
	if err != nil {
		return nil, err
	}
	for i, row := range members {
		if len(row) != count || count == 0 {
			return nil, fmt.Errorf("%w: image %d has %d members, the first has %d", ErrValues, i, len(row), count)
		}
		if err := finite(row); err != nil {
			return nil, err
		}
	}
	c := &Calibration{Offsets: make([]float32, count), Slopes: make([]float32, count), Weights: normalized}
	own := make([][]float32, count) // slopes by member and image
	column := make([]float64, len(members))
	for m := range count {
		for i, row := range members {
			column[i] = row[m]
		}
		mean, deviation := MeanDeviation(column)
		c.Offsets[m], c.Slopes[m] = float32(mean), slope(deviation)
		own[m] = slopes(column, mean, deviation)
	}
	scores := make([]float64, len(members))
	row := make([]float32, count)
	for i, values := range members {
		for m := range row {
			row[m] = own[m][i]
		}
		scores[i] = c.join(values, row)
	}
	return c, c.setThreshold(scores, rate)
}

// slope returns one over the standard deviation.
func slope(deviation float64) float32 { return float32(1 / max(deviation, deviationFloor)) }

// slopesWithout returns, for each value, the slope by the deviation of all other values.
// mean and deviation are computed over all values.
func slopesWithout(values []float64, mean, deviation float64) []float32 {
	n := float64(len(values))
	out := make([]float32, len(values))
	for i, v := range values {
		// The sum of squared deviations without a value (Welford, 1962).
		squares := n*deviation*deviation - (v-mean)*(v-mean)*n/(n-1)
		out[i] = slope(math.Sqrt(max(squares, 0) / (n - 1)))
	}
	return out
}

// FitScores calibrates on the anomaly scores of calibration images. It computes the
// threshold only. It returns ErrTooFew, ErrRate and ErrValues.
func FitScores(scores []float64, rate float64) (*Calibration, error) {
	if err := checkCount(len(scores)); err != nil {
		return nil, err
	}
	if err := finite(scores); err != nil {
		return nil, err
	}
	c := &Calibration{}
	return c, c.setThreshold(scores, rate)
}

// Join returns the anomaly score of an image by its member scores. It rounds the result of
// each operation to float32, as the model's graph does.
func (c *Calibration) Join(members []float64) float64 { return c.join(members, c.Slopes) }

func (c *Calibration) join(members []float64, slopes []float32) float64 {
	var sum float32
	for m, v := range members {
		z := (float32(v) - c.Offsets[m]) * slopes[m]
		sum += float32(z * c.Weights[m]) // the conversion prevents a fused multiply-add
	}
	return score(sum)
}

// score returns the anomaly score of a joined deviation z, the softplus ln(1+exp(gain·z)).
// It is positive and increases with z.
func score(z float32) float64 {
	x := float64(gain * z)
	return float64(float32(max(x, 0) + math.Log1p(math.Exp(-math.Abs(x)))))
}

// Decision returns the calibration as a model's metadata.
func (c *Calibration) Decision(measure string) models.Decision {
	return models.Decision{
		Measure: measure, Threshold: c.Threshold, FalseAlarmRate: c.FalseAlarmRate,
		CalibrationImages: len(c.Scores), MinFalseAlarmRate: c.MinFalseAlarmRate, Scores: quantiles(c.Scores, models.MaxScores),
	}
}

// setThreshold sets the threshold, rates and scores.
func (c *Calibration) setThreshold(scores []float64, rate float64) error {
	if !(rate > 0 && rate < 1) {
		return fmt.Errorf("%w: %v, expected a number between 0 and 1", ErrRate, rate)
	}
	c.Scores = slices.Sorted(slices.Values(scores))
	threshold, minRate := conformal(c.Scores, rate)
	c.Threshold = threshold * (1 + RoundingShare)
	c.FalseAlarmRate, c.MinFalseAlarmRate = rate, minRate
	return nil
}

// conformal returns the conformal quantile of n ascending scores, the ⌈(n+1)(1−rate)⌉th
// smallest. The probability that another score from the same distribution is above it is
// at most the rate, for any distribution (Vovk et al., 2005). If the rate is below the
// minimum achievable false alarm rate minRate, 1/(n+1), the largest score is returned.
func conformal(sorted []float64, rate float64) (threshold, minRate float64) {
	n := len(sorted)
	rank := int(math.Ceil(float64(n+1) * (1 - rate)))
	return sorted[min(max(rank, 1), n)-1], 1 / float64(n+1)
}

// normalize returns the weights divided by their sum, or equal weights if weights is nil.
func normalize(weights []float64, members int) ([]float32, error) {
	out := make([]float32, members)
	if weights == nil {
		for m := range out {
			out[m] = float32(1 / float64(members))
		}
		return out, nil
	}
	if len(weights) != members {
		return nil, fmt.Errorf("%w: %d weights for %d members", ErrValues, len(weights), members)
	}
	if err := finite(weights); err != nil {
		return nil, err
	}
	sum := 0.0
	for _, w := range weights {
		if w < 0 {
			return nil, fmt.Errorf("%w: a weight of %v", ErrValues, w)
		}
		sum += w
	}
	if !(sum > 0) || math.IsInf(sum, 0) {
		return nil, fmt.Errorf("%w: weights whose sum is %v", ErrValues, sum)
	}
	for m, w := range weights {
		out[m] = float32(w / sum)
	}
	return out, nil
}

func checkCount(images int) error {
	if images < MinImages {
		return fmt.Errorf("%w: got %d, expected at least %d", ErrTooFew, images, MinImages)
	}
	return nil
}

// finite returns ErrValues if a value is NaN or outside the range of float32.
func finite(values []float64) error {
	for _, v := range values {
		if math.IsNaN(v) || math.Abs(v) > math.MaxFloat32 {
			return fmt.Errorf("%w: %v", ErrValues, v)
		}
	}
	return nil
}

// MeanDeviation returns the mean and the population standard deviation.
func MeanDeviation(xs []float64) (mean, deviation float64) {
	for _, x := range xs {
		mean += x
	}
	mean /= float64(len(xs))
	for _, x := range xs {
		deviation += (x - mean) * (x - mean)
	}
	return mean, math.Sqrt(deviation / float64(len(xs)))
}
