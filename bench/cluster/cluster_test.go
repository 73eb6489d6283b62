package main

import (
	"math"
	"slices"
	"testing"
)

func TestMeasured_HasWhatASimulationNeeds(t *testing.T) {
	m, err := readMeasured("measured.json")
	if err != nil {
		t.Fatal(err)
	}
	if m.Date == "" || m.Machine == "" || m.Command == "" || len(m.Sizes) == 0 {
		t.Errorf("%+v", m)
	}
	c, err := m.costs(m.Sizes[0].Side)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]float64{"decode": c.Decode, "infer": c.Infer, "load": c.Load, "train": c.Train, "model memory": c.ModelMemory, "model file": c.ModelFile,
		"image": c.ImageFile, "publish": c.PublishWork + c.Publish, "sync": c.Sync, "work of a publication": c.PublishWork} {
		if v <= 0 {
			t.Errorf("%s is %v", name, v)
		}
	}
	if _, err := m.costs(17); err == nil {
		t.Error("there are costs of a size that was not measured")
	}
}

func TestSpread_HasTheMeanOne(t *testing.T) {
	times := []float64{}
	for i := range 1000 {
		times = append(times, 0.01+float64(i*i)*1e-8)
	}
	sum := 0.0
	for _, f := range spread(times) {
		sum += f / 100
	}
	if math.Abs(sum-1) > 1e-3 {
		t.Errorf("mean %v", sum)
	}
}

func TestPoisson_HasItsRateAndSpread(t *testing.T) {
	list := poisson(50, 400, 1)
	if n := float64(len(list)); math.Abs(n-20000) > 600 {
		t.Errorf("%v arrivals, expected about 20,000", n)
	}
	sum, squares := 0.0, 0.0
	for i := 1; i < len(list); i++ {
		gap := list[i] - list[i-1]
		sum += gap
		squares += gap * gap
	}
	// The mean square of an exponential time is twice the square of its mean.
	n := float64(len(list) - 1)
	if ratio := squares / n / (sum / n * sum / n); math.Abs(ratio-2) > 0.1 {
		t.Errorf("ratio %v, expected 2", ratio)
	}
}

func TestPieceOf_HasTheImagesOf480KiB(t *testing.T) {
	for size, want := range map[float64]int{1: 128, 25e3: 19, 250e3: 1, 1e6: 1} {
		if got := pieceOf(size); got != want {
			t.Errorf("%v bytes: %d images, expected %d", size, got, want)
		}
	}
}

func TestJudge_FailsBeyondTheGoal(t *testing.T) {
	shown := row{got: [3]float64{100, 0.01, 0.02}, want: [3]float64{100, 0.01, 0.015}, shown: true}
	within := row{got: [3]float64{100, 0.01, 0.02}, want: [3]float64{110, 0.02, 0.021}}
	if err := judge([]row{within, shown}); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]row{
		"throughput": {got: [3]float64{100, 0.01, 0.02}, want: [3]float64{120, 0.01, 0.02}},
		"p99":        {got: [3]float64{100, 0.01, 0.02}, want: [3]float64{100, 0.01, 0.015}},
		"failures":   {got: [3]float64{100, 0.01, 0.02}, want: [3]float64{100, 0.01, 0.02}, failed: 1},
	} {
		if judge([]row{within, bad}) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestMedianWork_IsNeitherTheLeastNorTheMost(t *testing.T) {
	list := []sizeCosts{{Side: 1}, {Side: 2}, {Side: 3}}
	for i, infer := range []float64{0.03, 0.01, 0.02} {
		list[i].Costs.Infer, list[i].Costs.Contention = infer, 1
	}
	if got := medianWork(list); got.Side != 3 {
		t.Errorf("measurement %d, expected the third", got.Side)
	}
	list[1].Costs.Contention = 2.5 // 0.025 s
	if got := medianWork(list); got.Side != 2 {
		t.Errorf("measurement %d, expected the second", got.Side)
	}
}

func TestObservation_HasTheWorkOfEachTime(t *testing.T) {
	// Two machines answer 100 a second each. The second takes twice the work from 5 s on.
	o := &observation{observed: &observed{seconds: 10}, idle: 0.2}
	work := []float64{0, 0}
	for i := range 101 {
		at := float64(i) / 10
		o.samples = append(o.samples, sample{at, slices.Clone(work), []int{i * 10, i * 10}})
		for m := range work {
			work[m] += 0.01 + 10*0.002 // a half of what is done without a load, and ten detections
			if m == 1 && at >= 5 {
				work[m] += 10 * 0.002
			}
		}
	}
	for _, c := range []struct {
		machine  int
		at, want float64
	}{{0, 0, 0.002}, {0, 7, 0.002}, {1, 2, 0.002}, {1, 4.7, 0.002}, {1, 5.3, 0.004}, {1, 9.95, 0.004}} {
		if got := o.around(c.machine, c.at); math.Abs(got-c.want) > 1e-6 {
			t.Errorf("machine %d at %v s: %v, expected %v", c.machine, c.at, got, c.want)
		}
	}
	if got, want := o.work(), 0.0025; math.Abs(got-want) > 1e-6 {
		t.Errorf("%v a detection, expected %v", got, want)
	}
	few := &observation{observed: &observed{seconds: 10, samples: []sample{{0, []float64{0}, []int{0}}, {5, []float64{0.3}, []int{3}}, {10, []float64{1}, []int{10}}}}}
	if got := few.around(0, 2); math.Abs(got-0.1) > 1e-9 {
		t.Errorf("%v of ten detections, expected the mean of all", got)
	}
}
