package drift

import (
	"errors"
	"fmt"
	"math"

	"github.com/deepmed/anomaly/internal/streams"
)

// Level is the largest probability of an alarm, ever, if nothing has changed.
const Level = 0.01

// bets are the ε between which the capital is divided. Small ones win on scores far above
// the calibration's, large ones on many scores that are a little higher.
var bets = []float64{0.1, 0.3, 0.5, 0.7, 0.9}

// ErrState is returned, wrapped, for a State that does not fit the reference.
var ErrState = errors.New("drift: unusable state")

// Test is a test of a sequence of verdicts. It must not be used by several goroutines at
// once.
type Test struct {
	reference Reference
	seed      uint64
	counts    []int64 // earlier verdicts by the number of limits that they may be above
	tree      tree    // the same, by len(limits) minus that number
	images    int64
	// log is, for each bet, the logarithm of the capital of all gamblers that have begun;
	// empty before the first verdict.
	log   []float64
	alarm bool
	share float64 // of Level
}

// State is the state of a Test, for a file. Its size does not depend on the number of
// verdicts.
type State struct {
	Images int64     `json:"images"`
	Counts []int64   `json:"counts"`
	Log    []float64 `json:"log_capital,omitempty"`
	Alarm  bool      `json:"alarm,omitempty"`
}

// New returns a test that has seen no verdict. The seed breaks ties of ranks.
func New(r Reference, seed uint64) *Test {
	return &Test{reference: r, seed: seed, counts: make([]int64, len(r.low)+1), tree: make(tree, len(r.low)+2), share: 1}
}

// SetShare makes the test one of several of the same model, on different verdicts: its alarm is
// at the capital 1/(Level·share). If the shares of all tests sum up to at most 1, the
// probability that any of them ever raises an alarm is at most Level. This is a union bound,
// which needs no independence: the tests share the scores of the calibration, so that the mean
// of their capitals is no martingale. It must be called before the first verdict, or right after
// Resume.
func (t *Test) SetShare(share float64) { t.share = share }

// Resume returns a test in a state that State returned for the same reference and seed. It
// returns ErrState.
func Resume(r Reference, seed uint64, s State) (*Test, error) {
	t := New(r, seed)
	if len(s.Counts) != len(t.counts) || s.Images < 0 || s.Images > math.MaxInt64-r.n-1 ||
		len(s.Log) != len(bets) && !(s.Images == 0 && len(s.Log) == 0) {
		return nil, fmt.Errorf("%w: %d classes and %d bets of %d images", ErrState, len(s.Counts), len(s.Log), s.Images)
	}
	left := s.Images
	for possible, n := range s.Counts {
		if n < 0 || n > left {
			return nil, fmt.Errorf("%w: more verdicts in classes than %d", ErrState, s.Images)
		}
		left -= n
		t.counts[possible] = n
		t.tree.add(len(r.low)-possible, n)
	}
	if left != 0 {
		return nil, fmt.Errorf("%w: %d verdicts are in no class", ErrState, left)
	}
	for _, l := range s.Log {
		if math.IsNaN(l) || math.IsInf(l, 0) {
			return nil, fmt.Errorf("%w: a capital of %v", ErrState, l)
		}
	}
	t.images, t.alarm = s.Images, s.Alarm
	t.log = append(t.log, s.Log...)
	return t, nil
}

// State returns the state of the test.
func (t *Test) State() State {
	return State{Images: t.images, Counts: append([]int64{}, t.counts...), Log: append([]float64{}, t.log...), Alarm: t.alarm}
}

// Observe adds the finite score of a verdict. It takes O(log m) for m calibration scores or
// quantiles.
func (t *Test) Observe(score float64) {
	u := streams.Verdict(t.seed, t.images)
	p := t.pValue(t.reference.certain(score), u)
	possible := t.reference.possible(score)
	t.counts[possible]++
	t.tree.add(len(t.reference.low)-possible, 1)
	t.bet(math.Log(p))
}

// pValue returns the p-value of a score that is certainly above a number of limits. u is
// uniform in (0, 1].
func (t *Test) pValue(certain int, u float64) float64 {
	limits := len(t.reference.low)
	total := float64(t.reference.n + 1 + t.images)
	// above returns the number of gaps and verdicts above limit i, at least.
	above := func(i int) float64 {
		switch i {
		case -1:
			return total
		case limits:
			return 0
		}
		return float64(t.reference.above[i] + t.tree.sum(limits-1-i))
	}
	higher := above(certain)
	return (higher + u*(above(certain-1)-higher)) / total
}

// reserve returns the part of the capital of gamblers that have not begun after a number of
// verdicts. It decreases slowly to 0, so that a change after many verdicts is found almost
// as soon as one after few.
func reserve(images int64) float64 { return 1 / (1 + math.Log1p(float64(images))) }

// bet adds a verdict by the logarithm of its p-value.
func (t *Test) bet(logP float64) {
	begins := math.Log((reserve(t.images) - reserve(t.images+1)) / float64(len(bets)))
	first := t.log == nil
	if first {
		t.log = make([]float64, len(bets))
	}
	for i, e := range bets {
		capital := begins
		if !first {
			capital = logAdd(t.log[i], begins)
		}
		t.log[i] = capital + math.Log(e) + (e-1)*logP
	}
	t.images++
	t.alarm = t.alarm || t.logCapital() >= -math.Log(Level*t.share)
}

// logCapital returns the logarithm of the capital.
func (t *Test) logCapital() float64 {
	sum := math.Log(reserve(t.images))
	for _, l := range t.log {
		sum = logAdd(sum, l)
	}
	return sum
}

// logAdd returns ln(eᵃ+eᵇ).
func logAdd(a, b float64) float64 {
	if a < b {
		a, b = b, a
	}
	return a + math.Log1p(math.Exp(b-a))
}

// Images returns the number of verdicts.
func (t *Test) Images() int64 { return t.images }

// Log10Evidence returns the decimal logarithm of the capital times the share: 0 at the start
// without a share, and 2 or more at an alarm.
func (t *Test) Log10Evidence() float64 { return (t.logCapital() + math.Log(t.share)) / math.Ln10 }

// Alarm reports whether the capital has ever reached 1/Level, or 1/(Level·share).
func (t *Test) Alarm() bool { return t.alarm }
