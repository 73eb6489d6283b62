package drift

import (
	"math"
	"sort"
)

// Reference divides scores into classes by calibration scores whose ranks are known.
//
// A model has all n scores of its calibration, or quantiles between them. A quantile is
// interpolated between two neighbouring scores, so that the score itself, the limit of a
// class, is only known to be between two values. The limits are chosen so that a p-value is
// never smaller than that of the n scores themselves: an interpolated limit is at most one
// quantile beside the true one.
type Reference struct {
	// low and high are the values that each limit is between, ascending. They are equal
	// for a limit that is known.
	low, high []float64
	// above is the number of the n+1 gaps between the calibration scores that are above
	// each limit.
	above []int64
	n     int64
}

// NewReference returns the reference of n calibration scores: scores are all of them, or
// equally spaced quantiles, ascending and finite. It returns false for fewer than 2.
func NewReference(scores []float64, n int) (Reference, bool) {
	count := len(scores)
	if count < 2 {
		return Reference{}, false
	}
	n = max(n, count)
	r := Reference{n: int64(n)}
	for i, q := range scores {
		// As calibration.resample computes it.
		at := float64(i) * float64(n-1) / float64(count-1)
		part := at - math.Floor(at)
		low, high, rank := q, q, math.Floor(at)
		switch {
		case part == 0:
		case part <= 0.5:
			// q is (1−part)·limit + part·next, and next is at most the next quantile.
			low = max(scores[i-1], q-part/(1-part)*(scores[i+1]-q))
		default:
			// q is (1−part)·last + part·limit, and last is at least the last quantile.
			rank++
			high = min(scores[i+1], q+(1-part)/part*(q-scores[i-1]))
		}
		r.low, r.high = append(r.low, low), append(r.high, high)
		r.above = append(r.above, int64(n)-int64(rank))
	}
	return r, true
}

// certain returns the number of limits that a score is certainly above.
func (r Reference) certain(score float64) int {
	return sort.Search(len(r.high), func(i int) bool { return score <= r.high[i] })
}

// possible returns the number of limits that a score may be above.
func (r Reference) possible(score float64) int {
	return sort.Search(len(r.low), func(i int) bool { return score < r.low[i] })
}

// tree counts values in classes, and returns the number in a class and all above it in
// O(log n) (Fenwick, 1994). Its index 0 is not used; class 0 is the highest.
type tree []int64

func (t tree) add(class int, n int64) {
	for i := class + 1; i < len(t); i += i & -i {
		t[i] += n
	}
}

// sum returns the number of values in the classes from 0 to class.
func (t tree) sum(class int) int64 {
	var s int64
	for i := class + 1; i > 0; i -= i & -i {
		s += t[i]
	}
	return s
}
