package trainer

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// clock is a fake clock.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

// simulate takes steps of the given duration, multiplied by first for the first one,
// until the budget ends. It returns the number of steps, the learning rate decay of
// each, and the time that passed, including the calibration.
func simulate(b *timeBudget, c *clock, step time.Duration, first float64) (steps int, decays []float64, took time.Duration) {
	for b.allowsStep() {
		decays = append(decays, b.decay())
		d := step
		if steps == 0 {
			d = time.Duration(first * float64(step))
		}
		c.at = c.at.Add(d)
		b.addStep(d)
		steps++
	}
	return steps, decays, c.at.Sub(b.began) + b.calibrationTime()
}

func TestTimeBudget_EndsInTimeAndDecaysOnlyWhenShort(t *testing.T) {
	const second = time.Second
	for name, c := range map[string]struct {
		limit, loading, step time.Duration
		first                float64
		steps                int
		short                bool
	}{
		"no limit":               {0, 5 * second, second, 3, 210, false},
		"a limit far away":       {1000 * second, 5 * second, second, 3, 210, false},
		"a limit that just fits": {230 * second, 5 * second, second, 3, 210, false},
		"half the time":          {120 * second, 5 * second, second, 1, 0, true},
		"a slow first step":      {120 * second, 5 * second, second, 20, 0, true},
		"little time":            {12 * second, second, second, 1, 0, true},
		"little time, slow":      {12 * second, second, second, 5, 0, true},
		"a very slow first step": {12 * second, second, second / 10, 50, 0, true},
		"less than a step":       {second, 2 * second, second, 1, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			clock := &clock{time.Unix(1000, 0)}
			b := newTimeBudget(210, 7*16, 16, clock.at, c.limit)
			b.now = clock.now
			clock.at = clock.at.Add(c.loading)
			steps, decays, took := simulate(b, clock, c.step, c.first)
			if c.steps != 0 && steps != c.steps {
				t.Errorf("%d steps, want %d", steps, c.steps)
			}
			last := decays[len(decays)-1]
			if !c.short {
				if last != 1 {
					t.Errorf("the learning rate decays to %v", last)
				}
				return
			}
			if steps >= 210 || took > c.limit {
				t.Errorf("%d steps took %v of %v", steps, took, c.limit)
			}
			if spare := calibrationEnd(c.limit) - took; spare >= c.step {
				t.Errorf("%v are left, enough for another step", spare)
			}
			for i := 1; i < len(decays); i++ {
				if decays[i] > decays[i-1] {
					t.Fatalf("the learning rate rises from %v to %v", decays[i-1], decays[i])
				}
			}
			if steps > 20 && (last > 0.05 || decays[steps/3] != 1) {
				t.Errorf("the learning rate is %v after a third and %v at the end", decays[steps/3], last)
			}
		})
	}
}

// If time is short, the calibration uses only a part of a large data set.
func TestTimeBudget_LeavesMostTimeToSteps(t *testing.T) {
	clock := &clock{time.Unix(1000, 0)}
	b := newTimeBudget(10_000, 16_000, 16, clock.at, 100*time.Second)
	b.now = clock.now
	steps, _, took := simulate(b, clock, time.Second, 1)
	if steps < 85 || took > 100*time.Second {
		t.Errorf("%d steps, %v including the calibration", steps, took)
	}
}

func TestTimeBudget_EndsInTimeWhenStepsBecomeSlow(t *testing.T) {
	clock := &clock{time.Unix(1000, 0)}
	b := newTimeBudget(100, 160, 16, clock.at, 150*time.Second)
	b.now = clock.now
	steps := 0
	for ; b.allowsStep(); steps++ {
		d := time.Second
		if steps >= 50 {
			d = 4 * time.Second
		}
		clock.at = clock.at.Add(d)
		b.addStep(d)
	}
	if took := clock.at.Sub(b.began); steps < 60 || steps >= 100 || took > 150*time.Second {
		t.Errorf("%d steps in %v", steps, took)
	}
}

func TestTrain_ReturnsErrTooLittleTime(t *testing.T) {
	_, err := Train(t.Context(), orttest.Open(t), folder(t), Options{Level: 1, ImageSize: 16, MaxTime: time.Nanosecond})
	if !errors.Is(err, ErrTooLittleTime) {
		t.Errorf("%v", err)
	}
}

func TestCalibrate_UsesTheImagesDoneInTime(t *testing.T) {
	engine, src := orttest.Open(t), folder(t)
	o := Options{Level: 1, ImageSize: 16}
	m, err := Train(t.Context(), engine, src, o)
	if err != nil {
		t.Fatal(err)
	}
	o, _, _ = o.Settle()
	o.Threads = engine.Threads()
	data, err := dataset.Load(t.Context(), src, o.dataset())
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	all := make([]int, data.Len())
	for i := range all {
		all[i] = i
	}
	whole := m.Metadata
	if whole.Training.Calibrated != data.Len() || data.Len() <= minCalibrated {
		t.Fatalf("calibrated on %d of %d images", whole.Training.Calibrated, data.Len())
	}
	if err := calibrate(t.Context(), engine, m, data, all, o, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if n := m.Metadata.Training.Calibrated; n < minCalibrated || n >= data.Len() {
		t.Errorf("calibrated on %d of %d images after the time limit", n, data.Len())
	}
	if m.Metadata.Threshold == whole.Threshold || math.Abs(m.Metadata.MeanError-whole.MeanError) > 0.5*whole.MeanError {
		t.Errorf("threshold %v and mean %v of a part, %v and %v of all images", m.Metadata.Threshold, m.Metadata.MeanError, whole.Threshold, whole.MeanError)
	}
}

func TestTrain_CompletesWithinALongTimeLimit(t *testing.T) {
	m, err := Train(t.Context(), orttest.Open(t), folder(t), Options{Level: 1, ImageSize: 16, MaxTime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Metadata.Training; s.Ended != models.EndedComplete || s.Steps != s.PlannedSteps || s.Steps != 5*4 || s.MaxSeconds != 3600 || s.EpochsDone() != 5 {
		t.Errorf("%+v", s)
	}
}

func TestTrain_ReturnsTheModelSoFarWhenStopped(t *testing.T) {
	stop := make(chan struct{})
	o := Options{Level: 1, ImageSize: 16, Stop: stop, Progress: func(p Progress) {
		if p.Step == 6 {
			close(stop)
		}
	}}
	m, err := Train(t.Context(), orttest.Open(t), folder(t), o)
	if err != nil {
		t.Fatal(err)
	}
	s := m.Metadata.Training
	if s.Ended != models.EndedByCaller || s.Steps != 6 || s.PlannedSteps != 20 || math.Abs(s.EpochsDone()-1.5) > 1e-9 || len(m.Metadata.TrainingLosses) != 2 {
		t.Errorf("%+v, losses %v", s, m.Metadata.TrainingLosses)
	}
	if m.Metadata.Threshold <= 0 {
		t.Errorf("threshold %v", m.Metadata.Threshold)
	}
	// Four images are too few for a decision, so without a step there is no model.
	if _, err := Train(t.Context(), orttest.Open(t), zipSource(t, testkit.Tiles(t, 4)), o); !errors.Is(err, ErrStopped) {
		t.Errorf("stopped before the first step: %v", err)
	}
}

// The decision is learned before the epochs. A training stopped before them takes one
// step and keeps the decision.
func TestTrain_KeepsTheDecisionWhenStoppedBeforeTheEpochs(t *testing.T) {
	stop := make(chan struct{})
	close(stop)
	for _, limit := range []time.Duration{0, time.Hour} {
		m, err := Train(t.Context(), orttest.Open(t), folder(t), Options{Level: 2, ImageSize: 32, Stop: stop, MaxTime: limit})
		if err != nil {
			t.Fatal(err)
		}
		s := m.Metadata.Training
		if s.Steps != 1 || s.Ended != models.EndedByCaller || s.HeadSteps != 0 || m.Metadata.Decision == nil || len(s.Warnings) != 1 {
			t.Errorf("limit %v: %+v, decision %+v", limit, s, m.Metadata.Decision)
		}
	}
}

// Heads are trained before the epochs.
func TestTrain_KeepsHeadsWhenStoppedInTheEpochs(t *testing.T) {
	stop := make(chan struct{})
	o := Options{Level: 2, ImageSize: 32, Stop: stop, Progress: func(p Progress) {
		if p.Step == 1 {
			close(stop)
		}
	}}
	m, err := Train(t.Context(), orttest.Open(t), aFewTiles(t), o)
	if err != nil {
		t.Fatal(err)
	}
	level, err := LevelOf(2)
	if err != nil {
		t.Fatal(err)
	}
	s := m.Metadata.Training
	if s.Steps != 1 || s.Ended != models.EndedByCaller || s.HeadSteps != level.HeadSteps || !models.HasHeads(m.Reference) || len(s.Warnings) != 1 {
		t.Errorf("%+v", s)
	}
}
