package sim

import (
	"math"
	"slices"
)

// Quantiles collects times in buckets that are 1 % wide, from a microsecond on.
type Quantiles struct {
	counts []uint32
	n      int
	sum    float64
	max    float64
}

const (
	leastTime  = 1e-6
	bucketStep = 0.01
)

// Add adds a time in seconds.
func (q *Quantiles) Add(t float64) {
	i := 0
	if t > leastTime {
		i = int(math.Log(t/leastTime) / math.Log1p(bucketStep))
	}
	if i >= len(q.counts) {
		q.counts = slices.Grow(q.counts, i+1-len(q.counts))[:i+1]
	}
	q.counts[i]++
	q.n++
	q.sum += t
	q.max = max(q.max, t)
}

// Count returns the number of times.
func (q *Quantiles) Count() int { return q.n }

// Mean returns their mean; 0 without any.
func (q *Quantiles) Mean() float64 {
	if q.n == 0 {
		return 0
	}
	return q.sum / float64(q.n)
}

// Max returns the largest one.
func (q *Quantiles) Max() float64 { return q.max }

// At returns the time that a share p of all times does not exceed, within half a
// percent; 0 without any.
func (q *Quantiles) At(p float64) float64 {
	if q.n == 0 {
		return 0
	}
	rank, seen := int(math.Ceil(p*float64(q.n))), 0
	for i, c := range q.counts {
		if seen += int(c); seen >= max(rank, 1) {
			return min(leastTime*math.Pow(1+bucketStep, float64(i)+0.5), q.max)
		}
	}
	return q.max
}
