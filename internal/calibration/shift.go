package calibration

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/deepmed/anomaly/models"
	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"
	"gonum.org/v1/gonum/stat/sampleuv"
)

const (
	// significance is the significance level of Shift.Significant: one in a hundred
	// batches from the calibration's distribution is reported as shifted.
	significance = 0.01
	// confidence is the confidence level of a Share's interval.
	confidence = 0.95
	// If a sample is smaller than fewScores, the tests' asymptotic distributions are too
	// inaccurate. Then the p-values are computed by this number of permutations.
	fewScores    = 20
	permutations = 9999
	// maxReference bounds the scores that are interpolated from a model's quantiles. The
	// number of calibration images in a model file cannot be trusted.
	maxReference = 10_000
)

// quantiles returns at most limit quantiles, two or more, of ascending scores, at equal
// steps from the smallest to the largest, by linear interpolation (definition 7 of
// Hyndman and Fan, 1996). It returns all scores if there are no more than limit.
func quantiles(sorted []float64, limit int) []float64 {
	if len(sorted) <= limit {
		return slices.Clone(sorted)
	}
	return resample(sorted, limit)
}

// resample returns n values, two or more, at equal steps along ascending values.
func resample(sorted []float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		at := float64(i) * float64(len(sorted)-1) / float64(n-1)
		below := int(at)
		above := min(below+1, len(sorted)-1)
		part := at - float64(below)
		// This form of the interpolation does not overflow.
		v := (1-part)*sorted[below] + part*sorted[above]
		if i > 0 {
			v = max(v, out[i-1])
		}
		out[i] = v
	}
	return out
}

// Reference holds the scores of a model's calibration, to compare with the scores of later
// images.
type Reference struct {
	scores    []float64 // ascending, at least one
	threshold float64
}

// ReferenceOf returns the scores in a model's decision, and false if it has none.
func ReferenceOf(d *models.Decision) (Reference, bool) {
	if d == nil || len(d.Scores) < 2 {
		return Reference{}, false
	}
	scores := d.Scores
	if n := min(d.CalibrationImages, maxReference); n > len(scores) {
		scores = resample(scores, n)
	}
	return Reference{scores, d.Threshold}, true
}

// Shift compares the scores of a batch of images with the scores of a model's calibration.
type Shift struct {
	// Images and CalibrationImages are the numbers of images of the batch and of the
	// calibration.
	Images            int `json:"images"`
	CalibrationImages int `json:"calibration_images"`
	// MannWhitney and KolmogorovSmirnov are the two-sided p-values of these tests. The
	// null hypothesis is that both samples have the same distribution. The first test
	// is sensitive to a difference in location, the second to any difference.
	MannWhitney       float64 `json:"mann_whitney_p"`
	KolmogorovSmirnov float64 `json:"kolmogorov_smirnov_p"`
	// Deviations is the difference of the batch's mean from the calibration's, in
	// standard deviations of the calibration's scores.
	Deviations float64 `json:"standard_deviations"`
	// Above is the share of the batch above the threshold. For normal images it
	// estimates the false alarm rate.
	Above Share `json:"above_threshold"`
}

// Compare returns the shift of a batch of one or more finite scores, in any order.
func (r Reference) Compare(scores []float64) Shift {
	sorted := slices.Sorted(slices.Values(scores))
	mean, deviation := MeanDeviation(r.scores)
	batch, _ := MeanDeviation(sorted)
	s := Shift{
		Images: len(sorted), CalibrationImages: len(r.scores),
		Deviations: (batch - mean) / max(deviation, deviationFloor),
		Above:      ShareAbove(sorted, r.threshold),
	}
	s.MannWhitney, s.KolmogorovSmirnov = twoSample(r.scores, sorted)
	return s
}

// Significant reports whether the batch differs from the calibration at a significance
// level of 1 % for both tests together (Bonferroni correction).
func (s Shift) Significant() bool {
	return 2*min(s.MannWhitney, s.KolmogorovSmirnov) < significance
}

// String returns the shift as text.
func (s Shift) String() string {
	where := "above"
	if s.Deviations < 0 {
		where = "below"
	}
	return fmt.Sprintf("%.2f standard deviations %s the scores of the %d images of its calibration (Mann–Whitney p = %.2g, Kolmogorov–Smirnov p = %.2g)",
		math.Abs(s.Deviations), where, s.CalibrationImages, s.MannWhitney, s.KolmogorovSmirnov)
}

// Share is a share of images with its 95 % confidence interval (Clopper and Pearson,
// 1934).
type Share struct {
	Share float64 `json:"share"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// ShareAbove returns the share of one or more scores that are above the threshold.
func ShareAbove(scores []float64, threshold float64) Share {
	k := 0
	for _, v := range scores {
		if v > threshold {
			k++
		}
	}
	n := len(scores)
	s := Share{Share: float64(k) / float64(n), High: 1}
	const tail = (1 - confidence) / 2
	if k > 0 {
		s.Low = distuv.Beta{Alpha: float64(k), Beta: float64(n - k + 1)}.Quantile(tail)
	}
	if k < n {
		s.High = distuv.Beta{Alpha: float64(k + 1), Beta: float64(n - k)}.Quantile(1 - tail)
	}
	return s
}

// String returns the share and its interval in per cent.
func (s Share) String() string {
	return fmt.Sprintf("%.1f %% (95 %% interval %.1f–%.1f %%)", 100*s.Share, 100*s.Low, 100*s.High)
}

// twoSample returns the two-sided p-values of the Mann–Whitney and Kolmogorov–Smirnov
// tests of two ascending samples.
func twoSample(a, b []float64) (mannWhitney, kolmogorovSmirnov float64) {
	if len(a) > len(b) {
		a, b = b, a // both tests are symmetric
	}
	p := pool(a, b)
	u := p.rankDeviation(p.first)
	d := stat.KolmogorovSmirnov(a, nil, b, nil)
	if len(a) < fewScores {
		return p.permuted(u, d)
	}
	return p.mannWhitney(u), kolmogorov(d, len(a), len(b))
}

// pooled is the union of two samples in ascending order.
type pooled struct {
	n, m  int   // sizes of the samples
	first []int // indexes of the first sample's values
	// The values equal to value i have the indexes starts[i] to ends[i]−1.
	starts, ends []int
}

// pool returns the union of two ascending samples.
func pool(a, b []float64) pooled {
	n := len(a) + len(b)
	all := slices.Sorted(slices.Values(slices.Concat(a, b)))
	p := pooled{n: len(a), m: len(b), starts: make([]int, n), ends: make([]int, n)}
	for i := 0; i < n; {
		end := i + 1
		for end < n && all[end] == all[i] {
			end++
		}
		for k := i; k < end; k++ {
			p.starts[k], p.ends[k] = i, end
		}
		i = end
	}
	for i, v := range a {
		at, _ := slices.BinarySearch(all, v)
		for i > 0 && at <= p.first[i-1] {
			at = p.first[i-1] + 1 // equal values have different indexes
		}
		p.first = append(p.first, at)
	}
	return p
}

// rankDeviation returns the absolute difference of the rank sum of a sample, given by
// indexes, from its expected value. Equal values share their mean rank.
func (p pooled) rankDeviation(sample []int) float64 {
	sum := 0.0
	for _, k := range sample {
		sum += float64(p.starts[k]+p.ends[k]+1) / 2
	}
	return math.Abs(sum - float64(len(sample))*float64(p.n+p.m+1)/2)
}

// distance returns the largest distance between the empirical distribution functions of a
// sample, given by ascending indexes, and of all other values. The functions are compared
// below and above each value of the sample.
func (p pooled) distance(sample []int) float64 {
	largest := 0.0
	at := func(own, all int) { // own of the first all values are in the sample
		d := float64(own)/float64(p.n) - float64(all-own)/float64(p.m)
		largest = max(largest, math.Abs(d))
	}
	for i := 0; i < len(sample); {
		k := sample[i]
		at(i, p.starts[k])
		for i < len(sample) && sample[i] < p.ends[k] {
			i++
		}
		at(i, p.ends[k])
	}
	return largest
}

// permuted returns the p-values of the rank deviation u and the distance d by random
// permutations. The samples themselves count as one permutation.
func (p pooled) permuted(u, d float64) (byRanks, byDistance float64) {
	const rounding = 1e-9
	source := rand.NewPCG(1, 2) // constant, for reproducible p-values
	sample := make([]int, p.n)
	ranks, distances := 1, 1
	for range permutations {
		sampleuv.WithoutReplacement(sample, p.n+p.m, source)
		slices.Sort(sample)
		if p.rankDeviation(sample) >= u-rounding {
			ranks++
		}
		if p.distance(sample) >= d-rounding {
			distances++
		}
	}
	return float64(ranks) / (permutations + 1), float64(distances) / (permutations + 1)
}

// mannWhitney returns the p-value of a rank deviation by the normal approximation, with
// corrections for ties and continuity.
func (p pooled) mannWhitney(u float64) float64 {
	n := float64(p.n + p.m)
	ties := 0.0
	for k := 0; k < len(p.ends); k = p.ends[k] {
		t := float64(p.ends[k] - p.starts[k])
		ties += t*t*t - t
	}
	variance := float64(p.n) * float64(p.m) / 12 * (n + 1 - ties/(n*(n-1)))
	if variance <= 0 { // all values are equal
		return 1
	}
	return math.Erfc(max(u-0.5, 0) / math.Sqrt(2*variance))
}

// kolmogorov returns the p-value of distance d between samples of sizes n and m, by the
// asymptotic distribution with the correction of Stephens (1970).
func kolmogorov(d float64, n, m int) float64 {
	root := math.Sqrt(float64(n) * float64(m) / float64(n+m))
	x := (root + 0.12 + 0.11/root) * d
	const smallest = 0.2 // below it the series converges slowly; its sum is 1
	if x < smallest {
		return 1
	}
	sum := 0.0
	for j := 1.0; j <= 100; j++ {
		term := 2 * math.Exp(-2*j*j*x*x)
		if int(j)%2 == 0 {
			term = -term
		}
		sum += term
	}
	return min(max(sum, 0), 1)
}
