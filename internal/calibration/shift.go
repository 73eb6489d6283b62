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
	// Significance is the level of the test that Shift.Significant reports: of
	// batches that are like the calibration's images one in a hundred is called
	// different.
	Significance = 0.01
	// confidence is that of the interval of a Share.
	confidence = 0.95
	// Where one of two samples is smaller than fewScores, the approximations of the
	// tests' distributions are not good enough, and so many permutations, always the
	// same, take their place.
	fewScores    = 20
	permutations = 9999
	// mostReference bounds how many scores are made of a model's quantiles: its
	// number of images is what anybody wrote there.
	mostReference = 10_000
)

// Quantiles gives at most so many quantiles, two or more, of ascending scores, at
// equal steps from the smallest to the largest, interpolated between scores
// (definition 7 of Hyndman and Fan, 1996): all scores where there are no more.
func Quantiles(sorted []float64, most int) []float64 {
	if len(sorted) <= most {
		return slices.Clone(sorted)
	}
	return resampled(sorted, most)
}

// resampled gives n values, two or more, at equal steps along ascending ones.
func resampled(sorted []float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		at := float64(i) * float64(len(sorted)-1) / float64(n-1)
		below := int(at)
		above := min(below+1, len(sorted)-1)
		part := at - float64(below)
		// The sum of two parts neither overflows nor leaves the values' order.
		v := (1-part)*sorted[below] + part*sorted[above]
		if i > 0 {
			v = max(v, out[i-1])
		}
		out[i] = v
	}
	return out
}

// Reference is the scores of a model's calibration, which those of later images are
// held against.
type Reference struct {
	scores    []float64 // ascending, at least one
	threshold float64
}

// ReferenceOf gives the reference that a model's decision carries, and false where
// it carries none.
func ReferenceOf(d *models.Decision) (Reference, bool) {
	if d == nil || len(d.Scores) < 2 {
		return Reference{}, false
	}
	scores := d.Scores
	if n := min(d.CalibrationImages, mostReference); n > len(scores) {
		scores = resampled(scores, n)
	}
	return Reference{scores, d.Threshold}, true
}

// PValue gives the chance that a normal image like the calibration's has a score of
// at least that: the conformal p-value (1 + how many have) / (1 + how many there
// are).
func (r Reference) PValue(score float64) float64 {
	below, _ := slices.BinarySearch(r.scores, score)
	return float64(1+len(r.scores)-below) / float64(1+len(r.scores))
}

// Shift is how far the scores of a batch of images are from those of a model's
// calibration.
type Shift struct {
	// Images is how many images the batch has, CalibrationImages how many the
	// calibration had.
	Images            int `json:"images"`
	CalibrationImages int `json:"calibration_images"`
	// MannWhitney and KolmogorovSmirnov are the two-sided p-values of the tests of
	// those names that both are drawn alike. The first sees that one lies above the
	// other, the second any difference.
	MannWhitney       float64 `json:"mann_whitney_p"`
	KolmogorovSmirnov float64 `json:"kolmogorov_smirnov_p"`
	// Deviations is how far the batch's mean lies above the calibration's, in
	// standard deviations of the calibration's scores.
	Deviations float64 `json:"standard_deviations"`
	// Above is the share of the batch above the threshold: of normal images the rate
	// of false alarms to be expected.
	Above Share `json:"above_threshold"`
}

// Compare gives the shift of a batch's scores, one or more finite ones, in any order.
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

// Significant reports whether the batch differs from the calibration, at the level
// Significance over both tests (Bonferroni).
func (s Shift) Significant() bool {
	return 2*min(s.MannWhitney, s.KolmogorovSmirnov) < Significance
}

// String gives the shift in a few words.
func (s Shift) String() string {
	where := "above"
	if s.Deviations < 0 {
		where = "below"
	}
	return fmt.Sprintf("%.2f standard deviations %s the scores of the %d images of its calibration (Mann–Whitney p = %.2g, Kolmogorov–Smirnov p = %.2g)",
		math.Abs(s.Deviations), where, s.CalibrationImages, s.MannWhitney, s.KolmogorovSmirnov)
}

// Share is a share of images, with the 95 % interval that so few of them allow
// (Clopper and Pearson, 1934).
type Share struct {
	Share float64 `json:"share"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// ShareAbove gives the share of scores, one or more, that are above the threshold.
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

// String gives the share and its interval in per cent.
func (s Share) String() string {
	return fmt.Sprintf("%.1f %% (95 %% interval %.1f–%.1f %%)", 100*s.Share, 100*s.Low, 100*s.High)
}

// twoSample gives the two-sided p-values of the tests of Mann and Whitney and of
// Kolmogorov and Smirnov for two ascending samples.
func twoSample(a, b []float64) (mannWhitney, kolmogorovSmirnov float64) {
	if len(a) > len(b) {
		a, b = b, a // neither test knows one from the other
	}
	p := pool(a, b)
	u := p.rankExcess(p.first)
	d := stat.KolmogorovSmirnov(a, nil, b, nil)
	if len(a) < fewScores {
		return p.permuted(u, d)
	}
	return p.mannWhitney(u), kolmogorov(d, len(a), len(b))
}

// pooled is two samples in one order.
type pooled struct {
	n, m   int   // sizes of the samples
	first  []int // places of the first sample's values
	starts []int // of each place, where the values that are equal to its begin
	ends   []int // and where they end
}

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
			at = p.first[i-1] + 1 // equal ones have a place each
		}
		p.first = append(p.first, at)
	}
	return p
}

// rankExcess gives how much the sum of the ranks of those places differs from what
// is expected of as many drawn from all, without its sign. Equal values share their
// mean rank.
func (p pooled) rankExcess(places []int) float64 {
	sum := 0.0
	for _, k := range places {
		sum += float64(p.starts[k]+p.ends[k]+1) / 2
	}
	return math.Abs(sum - float64(len(places))*float64(p.n+p.m+1)/2)
}

// distance gives the largest distance between the distribution of those places,
// ascending, and that of all others: it is reached beside one of them.
func (p pooled) distance(places []int) float64 {
	largest := 0.0
	at := func(own, all int) { // of the places before all, so many are own
		d := float64(own)/float64(p.n) - float64(all-own)/float64(p.m)
		largest = max(largest, math.Abs(d))
	}
	for i := 0; i < len(places); {
		k := places[i]
		at(i, p.starts[k])
		for i < len(places) && places[i] < p.ends[k] {
			i++
		}
		at(i, p.ends[k])
	}
	return largest
}

// permuted gives how often samples drawn anyhow from all differ as much as u and d
// say, the samples as they are counted among them.
func (p pooled) permuted(u, d float64) (byRanks, byDistance float64) {
	const rounding = 1e-9
	source := rand.NewPCG(1, 2) // the same batch has the same p-value
	places := make([]int, p.n)
	ranks, distances := 1, 1
	for range permutations {
		sampleuv.WithoutReplacement(places, p.n+p.m, source)
		slices.Sort(places)
		if p.rankExcess(places) >= u-rounding {
			ranks++
		}
		if p.distance(places) >= d-rounding {
			distances++
		}
	}
	return float64(ranks) / (permutations + 1), float64(distances) / (permutations + 1)
}

// mannWhitney gives the normal approximation, with the correction for equal values
// and for continuity.
func (p pooled) mannWhitney(u float64) float64 {
	n := float64(p.n + p.m)
	ties := 0.0
	for k := 0; k < len(p.ends); k = p.ends[k] {
		t := float64(p.ends[k] - p.starts[k])
		ties += t*t*t - t
	}
	variance := float64(p.n) * float64(p.m) / 12 * (n + 1 - ties/(n*(n-1)))
	if variance <= 0 { // all are equal
		return 1
	}
	return math.Erfc(max(u-0.5, 0) / math.Sqrt(2*variance))
}

// kolmogorov gives the limit distribution's p-value of a distance between samples of
// those sizes, with the correction of Stephens (1970).
func kolmogorov(d float64, n, m int) float64 {
	root := math.Sqrt(float64(n) * float64(m) / float64(n+m))
	x := (root + 0.12 + 0.11/root) * d
	const smallest = 0.2 // below the series does not converge, and its sum is 1
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
