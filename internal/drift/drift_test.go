package drift

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"
)

// repetitions is the number of simulated services. The table in docs/detection.md is of
// -repetitions 4000.
var repetitions = flag.Int("repetitions", 80, "simulated sequences of verdicts for each row of TestTest_RaisesFalseAlarmsAtMostAtItsLevel")

// verdicts is the length of a simulated sequence.
const verdicts = 10_000

// sample returns n ascending scores, and what a model contains of them.
func sample(rng *rand.Rand, n int, draw func(*rand.Rand) float64) (all, stored []float64) {
	for range n {
		all = append(all, draw(rng))
	}
	sort.Float64s(all)
	const maxScores = 101
	if n <= maxScores {
		return all, all
	}
	for i := range maxScores { // as in package calibration
		at := float64(i) * float64(n-1) / (maxScores - 1)
		below := int(at)
		part := at - float64(below)
		stored = append(stored, (1-part)*all[below]+part*all[min(below+1, n-1)])
	}
	return all, stored
}

func normal(rng *rand.Rand) float64 { return rng.NormFloat64() }

// The promise holds for all numbers of calibration images, with all scores and with
// quantiles, and for scores that are often equal.
func TestTest_RaisesFalseAlarmsAtMostAtItsLevel(t *testing.T) {
	for _, c := range []struct {
		images int
		name   string
		draw   func(*rand.Rand) float64
	}{
		{8, "normal scores", normal},
		{20, "normal scores", normal},
		{101, "normal scores", normal},
		{150, "quantiles of normal scores", normal},
		{1000, "quantiles of normal scores", normal},
		{1000, "quantiles of scores with gaps", func(rng *rand.Rand) float64 {
			return math.Floor(3*rng.ExpFloat64()) + 1e-3*rng.Float64()
		}},
		{50, "scores of five values", func(rng *rand.Rand) float64 { return float64(rng.IntN(5)) }},
	} {
		t.Run(fmt.Sprintf("%d/%s", c.images, c.name), func(t *testing.T) {
			t.Parallel()
			alarms := 0
			for k := range *repetitions {
				rng := rand.New(rand.NewPCG(uint64(k), uint64(c.images)))
				_, stored := sample(rng, c.images, c.draw)
				r, ok := NewReference(stored, c.images)
				if !ok {
					t.Fatal("no reference")
				}
				test := New(r, uint64(k))
				for range verdicts {
					if test.Observe(c.draw(rng)); test.Alarm() {
						alarms++
						break
					}
				}
			}
			n := float64(*repetitions)
			t.Logf("%d calibration images, %s: %d of %d sequences of %d verdicts raised an alarm: %.2f %%", c.images, c.name, alarms, *repetitions, verdicts, 100*float64(alarms)/n)
			// Four standard deviations above the promise.
			if most := n*Level + 4*math.Sqrt(n*Level); float64(alarms) > most {
				t.Errorf("%d alarms in %d sequences, expected at most %.0f", alarms, *repetitions, most)
			}
		})
	}
}

// The reason why the ranks are also among earlier verdicts: among the calibration scores
// alone, the promise does not hold.
func TestTest_WouldRaiseFalseAlarmsByTheCalibrationAlone(t *testing.T) {
	alarms := 0
	for k := range *repetitions {
		rng := rand.New(rand.NewPCG(uint64(k), 20))
		_, stored := sample(rng, 20, normal)
		r, _ := NewReference(stored, 20)
		test, calibration := New(r, 1), New(r, 1)
		for range verdicts {
			p := calibration.pValue(r.certain(normal(rng)), 1-rng.Float64())
			if test.bet(math.Log(p)); test.Alarm() {
				alarms++
				break
			}
		}
	}
	share := float64(alarms) / float64(*repetitions)
	t.Logf("%.1f %% of the sequences raised an alarm", 100*share)
	if share < 0.1 {
		t.Errorf("only %v of the sequences raised an alarm", share)
	}
}

func TestTest_FindsHigherScores(t *testing.T) {
	for _, c := range []struct {
		images, before int
		change         string
		draw           func(*rand.Rand) float64
		most           int // the median must be at most this
	}{
		{20, 0, "mean + 3 σ", func(rng *rand.Rand) float64 { return 3 + rng.NormFloat64() }, 12},
		{100, 0, "mean + 3 σ", func(rng *rand.Rand) float64 { return 3 + rng.NormFloat64() }, 8},
		{100, 0, "mean + 1 σ", func(rng *rand.Rand) float64 { return 1 + rng.NormFloat64() }, 60},
		{1000, 0, "mean + 3 σ", func(rng *rand.Rand) float64 { return 3 + rng.NormFloat64() }, 8},
		{100, 5000, "mean + 3 σ", func(rng *rand.Rand) float64 { return 3 + rng.NormFloat64() }, 10},
		{100, 5000, "mean + 1 σ", func(rng *rand.Rand) float64 { return 1 + rng.NormFloat64() }, 60},
		{100, 5000, "mean + 0.5 σ", func(rng *rand.Rand) float64 { return 0.5 + rng.NormFloat64() }, 250},
		{100, 5000, "every sixth image + 4 σ", func(rng *rand.Rand) float64 {
			if rng.IntN(6) == 0 {
				return 4 + rng.NormFloat64()
			}
			return rng.NormFloat64()
		}, 110},
	} {
		t.Run(fmt.Sprintf("%d/%s after %d", c.images, c.change, c.before), func(t *testing.T) {
			t.Parallel()
			var took []int
			for k := range max(20, *repetitions/20) {
				rng := rand.New(rand.NewPCG(uint64(k), 99))
				_, stored := sample(rng, c.images, normal)
				r, _ := NewReference(stored, c.images)
				test := New(r, uint64(k))
				for range c.before {
					test.Observe(normal(rng))
				}
				if test.Alarm() {
					continue // at most one in a hundred
				}
				n := 0
				for ; !test.Alarm() && n < 100_000; n++ {
					test.Observe(c.draw(rng))
				}
				took = append(took, n)
			}
			slices.Sort(took)
			median := took[len(took)/2]
			t.Logf("%d calibration images, %s after %d: alarm after %d images (median), %d (9 of 10)", c.images, c.change, c.before, median, took[len(took)*9/10])
			if median > c.most {
				t.Errorf("the median is %d images, expected at most %d", median, c.most)
			}
		})
	}
}

func TestTest_IgnoresLowerScores(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	_, stored := sample(rng, 100, normal)
	r, _ := NewReference(stored, 100)
	test := New(r, 1)
	for range 2000 {
		test.Observe(normal(rng) - 3)
	}
	if test.Alarm() || test.Log10Evidence() > 0 {
		t.Errorf("evidence %v", test.Log10Evidence())
	}
}

// The p-value from quantiles is never below that of all scores with the same random number.
func TestPValue_OfQuantilesIsNotSmaller(t *testing.T) {
	for _, n := range []int{102, 131, 150, 201, 777, 1000} {
		rng := rand.New(rand.NewPCG(uint64(n), 3))
		for name, draw := range map[string]func(*rand.Rand) float64{
			"normal": normal,
			"gaps":   func(rng *rand.Rand) float64 { return math.Exp(6 * rng.Float64()) },
		} {
			all, stored := sample(rng, n, draw)
			quantiles, _ := NewReference(stored, n)
			if !slices.IsSorted(quantiles.low) || !slices.IsSorted(quantiles.high) || len(quantiles.above) != len(stored) {
				t.Fatalf("%d images: the limits do not ascend", n)
			}
			// The true limits, which the quantiles' references enclose.
			exact := Reference{n: int64(n)}
			for i, gaps := range quantiles.above {
				limit := all[int64(n)-gaps]
				if slack := 1e-12 * (1 + math.Abs(limit)); quantiles.low[i] > limit+slack || quantiles.high[i] < limit-slack {
					t.Fatalf("%d images, %s: limit %d is %v, not between %v and %v", n, name, i, limit, quantiles.low[i], quantiles.high[i])
				}
				exact.low, exact.high, exact.above = append(exact.low, limit), append(exact.high, limit), append(exact.above, gaps)
			}
			a, b := New(quantiles, 1), New(exact, 1)
			sum := 0.0
			const images = 3000
			for i := range images {
				score, u := draw(rng), rng.Float64()
				p, want := a.pValue(quantiles.certain(score), u), b.pValue(exact.certain(score), u)
				if p < want-1e-12 || p > 1 {
					t.Fatalf("%d images, %s: verdict %d has p = %v, expected at least %v", n, name, i, p, want)
				}
				sum += p
				a.Observe(score)
				b.Observe(score)
			}
			if mean := sum / images; mean < 0.46 || mean > 0.56 {
				t.Errorf("%d images, %s: the mean p-value is %v", n, name, mean)
			}
		}
	}
}

// With all scores, p-values are uniform and independent of the calibration.
func TestPValue_IsUniform(t *testing.T) {
	const n, services, images = 9, 4000, 3
	var ps [images][]float64
	for k := range services {
		rng := rand.New(rand.NewPCG(uint64(k), 7))
		_, stored := sample(rng, n, normal)
		r, _ := NewReference(stored, n)
		test := New(r, uint64(k))
		for i := range images {
			score := normal(rng)
			ps[i] = append(ps[i], test.pValue(r.certain(score), rng.Float64()))
			test.Observe(score)
		}
	}
	for i, p := range ps {
		slices.Sort(p)
		largest := 0.0 // Kolmogorov–Smirnov
		for k, v := range p {
			largest = max(largest, math.Abs(v-float64(k)/services), math.Abs(v-float64(k+1)/services))
		}
		if largest > 1.95/math.Sqrt(services) { // p = 0.001
			t.Errorf("verdict %d: the p-values are %v from uniform", i, largest)
		}
	}
}

func TestState_ResumesTheTest(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	_, stored := sample(rng, 500, normal)
	r, _ := NewReference(stored, 500)
	whole, stopped := New(r, 3), New(r, 3)
	for i := range 300 {
		score := normal(rng) + float64(i)/300
		whole.Observe(score)
		stopped.Observe(score)
		if i%50 == 0 {
			data, err := json.Marshal(stopped.State())
			if err != nil {
				t.Fatal(err)
			}
			var s State
			if err := json.Unmarshal(data, &s); err != nil {
				t.Fatal(err)
			}
			if stopped, err = Resume(r, 3, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	if whole.Log10Evidence() != stopped.Log10Evidence() || whole.Images() != stopped.Images() || whole.Alarm() != stopped.Alarm() {
		t.Errorf("%v of %d images, resumed %v of %d", whole.Log10Evidence(), whole.Images(), stopped.Log10Evidence(), stopped.Images())
	}
}

func TestResume_RejectsDamagedStates(t *testing.T) {
	r, _ := NewReference([]float64{1, 2, 3}, 3)
	log := []float64{0, 0, 0, 0, 0}
	for name, s := range map[string]State{
		"no classes":       {},
		"other classes":    {Images: 1, Counts: []int64{1, 0}, Log: log},
		"negative counts":  {Images: 1, Counts: []int64{2, -1, 0, 0}, Log: log},
		"too many counts":  {Images: 1, Counts: []int64{1, 1, 0, 0}, Log: log},
		"too few counts":   {Images: 3, Counts: []int64{1, 1, 0, 0}, Log: log},
		"overflow":         {Images: 1, Counts: []int64{math.MaxInt64, math.MaxInt64, 0, 0}, Log: log},
		"too many images":  {Images: math.MaxInt64, Counts: []int64{math.MaxInt64, 0, 0, 0}, Log: log},
		"no capital":       {Images: 1, Counts: []int64{1, 0, 0, 0}},
		"endless capital":  {Images: 1, Counts: []int64{1, 0, 0, 0}, Log: []float64{math.Inf(1), 0, 0, 0, 0}},
		"negative verdict": {Images: -1, Counts: []int64{0, 0, 0, 0}, Log: log},
	} {
		if _, err := Resume(r, 1, s); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Resume(r, 1, New(r, 1).State()); err != nil {
		t.Errorf("a new test: %v", err)
	}
	if _, ok := NewReference([]float64{1}, 1); ok {
		t.Error("a single score is a reference")
	}
}

// Scores at the ends of the range, and many equal ones, leave the capital finite.
func TestTest_StaysFinite(t *testing.T) {
	r, _ := NewReference([]float64{0, 0, 0, 0}, 1<<40)
	test := New(r, 1)
	for i := range 20_000 {
		test.Observe([]float64{math.MaxFloat64, 0, -math.MaxFloat64, 1e-300}[min(i/5000, 3)])
		if e := test.Log10Evidence(); math.IsNaN(e) || math.IsInf(e, 0) {
			t.Fatalf("evidence %v after %d", e, i)
		}
	}
}

func BenchmarkTest_Observe(b *testing.B) {
	rng := rand.New(rand.NewPCG(5, 5))
	_, stored := sample(rng, 1000, normal)
	r, _ := NewReference(stored, 1000)
	test := New(r, 3)
	for b.Loop() {
		test.Observe(rng.NormFloat64())
	}
}
