// Package calibration decides on a model's threshold from what the model's measure
// says of normal images that were not learnt from, and tells how far the scores of
// later images are from theirs. It knows scores and nothing of images, graphs or
// files.
package calibration

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/deepmed/anomaly/models"
)

const (
	// MinImages is how many normal images it takes to tell what is usual among them.
	MinImages = 8
	// Gain is what the joined deviation is multiplied with before it is shown as
	// ln(1+exp(x)): it scales the score and changes no verdict.
	Gain = 1
	// RoundingShare is what is added to a threshold, of itself: above what one
	// runtime's rounding differs by from another's (docs/interop.md), below what
	// images differ by. Without it, of images that are all alike some would be
	// anomalous by rounding.
	RoundingShare = 1e-4
	// deviationFloor is the least standard deviation that is assumed of a member, of
	// logarithms of squared distances: images that are all alike have none.
	deviationFloor = 1e-2
)

// Errors of a calibration.
var (
	// ErrTooFew is returned, wrapped, for fewer than MinImages images.
	ErrTooFew = errors.New("too few normal images to calibrate on")
	// ErrRate is returned, wrapped, for a false alarm rate that is no share.
	ErrRate = errors.New("unusable false alarm rate")
	// ErrValues is returned, wrapped, for values or weights that no calibration can
	// be based on: not finite, negative weights, or rows of different lengths.
	ErrValues = errors.New("unusable values to calibrate on")
)

// Calibration is how the raw values of a measure's members become an anomaly score,
// and the threshold that the score is held against.
type Calibration struct {
	// Offsets, Slopes and Weights are those of the members: an image's deviation by
	// a member is (raw − offset)·slope, and the mean of the deviations by these
	// weights, whose sum is 1, is the joined deviation. All are empty for a
	// calibration by FitScores.
	Offsets, Slopes, Weights []float32
	// Threshold is the anomaly score above which an image is anomalous.
	Threshold float64
	// FalseAlarmRate is what Threshold was drawn for, MinFalseAlarmRate the lowest rate
	// that so many images can promise: one in their number + 1.
	FalseAlarmRate, MinFalseAlarmRate float64
	// Scores are the anomaly scores of the images, ascending.
	Scores []float64
}

// Fit calibrates on images of which the raw value of each member is known,
// images × members: location and scale of each member are its mean and its
// population's standard deviation, and the threshold is drawn for that rate of
// false alarms. Without weights all members count the same. It returns ErrTooFew,
// ErrRate and ErrValues.
//
// The score that an image has in this is by the scale of all others, as a later
// image's is by that of images that it is none of: an image that lies far out widens
// the scale that it is held against. With 20 images and a member of heavy tails 6 %
// of later images were above the threshold instead of 5. The location is that of all
// in both, since what is subtracted from each changes no order.
func Fit(raw [][]float64, weights []float64, rate float64) (*Calibration, error) {
	if err := enough(len(raw)); err != nil {
		return nil, err
	}
	members := len(raw[0])
	normalized, err := shares(weights, members)
	if err != nil {
		return nil, err
	}
	for i, row := range raw {
		if len(row) != members || members == 0 {
			return nil, fmt.Errorf("%w: image %d has %d members, the first has %d", ErrValues, i, len(row), members)
		}
		if err := finite(row); err != nil {
			return nil, err
		}
	}
	c := &Calibration{Offsets: make([]float32, members), Slopes: make([]float32, members), Weights: normalized}
	own := make([][]float32, members) // slopes that leave an image out, by member
	column := make([]float64, len(raw))
	for m := range members {
		for i, row := range raw {
			column[i] = row[m]
		}
		mean, deviation := MeanDeviation(column)
		c.Offsets[m], c.Slopes[m] = float32(mean), slope(deviation)
		own[m] = slopesWithout(column, mean, deviation)
	}
	scores := make([]float64, len(raw))
	without := make([]float32, members)
	for i, row := range raw {
		for m := range without {
			without[m] = own[m][i]
		}
		scores[i] = c.join(row, without)
	}
	return c, c.draw(scores, rate)
}

// slope is what a member's difference from its mean is multiplied with.
func slope(deviation float64) float32 { return float32(1 / max(deviation, deviationFloor)) }

// slopesWithout gives for each of the values, whose mean and deviation are those,
// the slope by the deviation of all others.
func slopesWithout(values []float64, mean, deviation float64) []float32 {
	n := float64(len(values))
	out := make([]float32, len(values))
	for i, v := range values {
		// The sum of squares about the mean falls by this when a value is left out
		// (Welford, 1962).
		squares := n*deviation*deviation - (v-mean)*(v-mean)*n/(n-1)
		out[i] = slope(math.Sqrt(max(squares, 0) / (n - 1)))
	}
	return out
}

// FitScores calibrates on images of which only the anomaly score is known: it draws
// the threshold and leaves the measure as it is. It returns ErrTooFew, ErrRate and
// ErrValues.
func FitScores(scores []float64, rate float64) (*Calibration, error) {
	if err := enough(len(scores)); err != nil {
		return nil, err
	}
	if err := finite(scores); err != nil {
		return nil, err
	}
	c := &Calibration{}
	return c, c.draw(scores, rate)
}

// Join gives the anomaly score of an image by the raw value of each member,
// computed as a graph in float32 does: one operation after another, each rounded.
func (c *Calibration) Join(raw []float64) float64 { return c.join(raw, c.Slopes) }

func (c *Calibration) join(raw []float64, slopes []float32) float64 {
	var sum float32
	for m, v := range raw {
		z := (float32(v) - c.Offsets[m]) * slopes[m]
		sum += float32(z * c.Weights[m]) // rounded before the sum, on any processor
	}
	return Score(sum)
}

// Score gives the anomaly score of a joined deviation z: ln(1+exp(Gain·z)), which is
// positive and rises with z.
func Score(z float32) float64 {
	x := float64(Gain * z)
	return float64(float32(max(x, 0) + math.Log1p(math.Exp(-math.Abs(x)))))
}

// Decision gives what a model's metadata says of the calibration.
func (c *Calibration) Decision(measure string) models.Decision {
	return models.Decision{
		Measure: measure, Threshold: c.Threshold, FalseAlarmRate: c.FalseAlarmRate,
		CalibrationImages: len(c.Scores), MinFalseAlarmRate: c.MinFalseAlarmRate, Scores: Quantiles(c.Scores, models.MaxScores),
	}
}

// draw draws the threshold from the scores.
func (c *Calibration) draw(scores []float64, rate float64) error {
	if !(rate > 0 && rate < 1) {
		return fmt.Errorf("%w: %v, expected a number between 0 and 1", ErrRate, rate)
	}
	c.Scores = slices.Sorted(slices.Values(scores))
	threshold, supported := conformal(c.Scores, rate)
	c.Threshold = threshold * (1 + RoundingShare)
	c.FalseAlarmRate, c.MinFalseAlarmRate = rate, supported
	return nil
}

// conformal draws a threshold from ascending scores of normal images that were not
// learnt from: of another such image the chance to be above the ⌈(n+1)(1−rate)⌉th
// smallest of n is at most the rate, whatever the distribution (Vovk et al.,
// 2005). Too few images for the rate give the largest of them, and the rate that
// stands for.
func conformal(sorted []float64, rate float64) (threshold, supported float64) {
	n := len(sorted)
	rank := int(math.Ceil(float64(n+1) * (1 - rate)))
	return sorted[min(max(rank, 1), n)-1], 1 / float64(n+1)
}

// shares gives weights whose sum is 1: those, or the same for each member.
func shares(weights []float64, members int) ([]float32, error) {
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

func enough(images int) error {
	if images < MinImages {
		return fmt.Errorf("%w: got %d, expected at least %d", ErrTooFew, images, MinImages)
	}
	return nil
}

// finite returns ErrValues for values that float32 does not hold.
func finite(values []float64) error {
	for _, v := range values {
		if math.IsNaN(v) || math.Abs(v) > math.MaxFloat32 {
			return fmt.Errorf("%w: one is %v", ErrValues, v)
		}
	}
	return nil
}

// MeanDeviation returns the mean and the population's standard deviation.
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
