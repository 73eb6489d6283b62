package sim

import (
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
)

// costs of round numbers, for a service of about ten milliseconds an image.
func costs() Costs {
	return Costs{Receive: 0.001, Decode: 0.002, Infer: 0.010, Answer: 0.0005, AllThreads: 0.6, Client: 0.0005,
		Load: 0.05, ModelFile: 7e6, ModelMemory: 20e6, ImageFile: 100e3, Train: 30,
		Message: 0.0003, Byte: 1e-9, MessageWork: 1e-5, ByteWork: 5e-10,
		Publish: 0.003, Sync: 0.001, WriteByte: 2e-9, PublishWork: 3e-5, WriteByteWork: 1e-9, Fetch: 0.0003, ReadByte: 2e-9}
}

func config() Config {
	return Config{Seed: 1, Seconds: 120, Warmup: 20, Costs: costs(), Serve: 2, Workers: 2, Servers: 3, Replicas: 3,
		Cores: 2, ServerCores: 2, Models: 10, Zipf: 1, CacheBytes: 1e9, Owners: 2, BatchSize: 1, Rate: 50}
}

func run(t *testing.T, c Config) Result {
	t.Helper()
	r, err := Run(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// near reports whether two values differ by at most a share of the second.
func near(got, want, share float64) bool { return math.Abs(got-want) <= share*math.Abs(want) }

func TestMachine_SharesItsCoresAsTheTheoryOfQueuesSays(t *testing.T) {
	for _, c := range []struct {
		name        string
		cores, load float64
		want        float64 // mean time of an exponential task of mean 1
	}{
		{"one core at half its capacity", 1, 0.5, 2},             // M/M/1-PS: 1/(1-ρ)
		{"one core at 80 % of its capacity", 1, 0.8, 5},          //
		{"two cores at half of their capacity", 2, 0.5, 4.0 / 3}, // M/M/2: 1/(1-ρ²)
		{"two cores at 80 %", 2, 0.8, 1 / (1 - 0.64)},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, r := &Loop{}, rand.New(rand.NewPCG(7, 7))
			m := NewMachine(l, c.cores)
			n, sum := 0, 0.0
			var next func()
			next = func() {
				began := l.Now()
				m.Run(r.ExpFloat64(), 1, false, func() {
					n++
					sum += l.Now() - began
				})
				l.After(r.ExpFloat64()/(c.load*c.cores), next)
			}
			next()
			l.Run(400000)
			if mean := sum / float64(n); !near(mean, c.want, 0.03) {
				t.Errorf("a task took %.3f on average, expected %.3f", mean, c.want)
			}
			if use := m.Busy() / 400000 / c.cores; !near(use, c.load, 0.02) {
				t.Errorf("%.3f of the cores were used, expected %.3f", use, c.load)
			}
		})
	}
}

func TestMachine_GivesNiceTasksTheRestInProportionToWeights(t *testing.T) {
	l := &Loop{}
	m := NewMachine(l, 1)
	var normal, nice float64
	m.Run(1, 1, false, func() { normal = l.Now() })
	m.Run(1, 1, true, func() { nice = l.Now() })
	l.Run(100)
	// The normal task has 1024 of 1134 parts until it ends; both end when two core seconds
	// are done.
	if want := 1134.0 / 1024; !near(normal, want, 1e-6) || !near(nice, 2, 1e-6) {
		t.Errorf("ended at %v and %v, expected %v and 2", normal, nice, want)
	}
}

func TestMachine_RunsATaskOnNoMoreCoresThanItHasThreads(t *testing.T) {
	l := &Loop{}
	m := NewMachine(l, 4)
	var one, two float64
	m.Run(2, 1, false, func() { one = l.Now() })
	m.Run(2, 2, false, func() { two = l.Now() })
	l.Run(100)
	if !near(one, 2, 1e-9) || !near(two, 1, 1e-9) {
		t.Errorf("ended at %v and %v, expected 2 and 1", one, two)
	}
}

func TestMachine_SlowsDownWhileItsCoresAreBusy(t *testing.T) {
	l := &Loop{}
	m := NewMachine(l, 2)
	m.contention = 1.5
	var first, second float64
	m.Run(1, 1, false, func() { first = l.Now() })
	m.Run(2, 1, false, func() { second = l.Now() })
	l.Run(100)
	// Both take 1.5 times as long until the first ends; then the second has one more to do.
	if !near(first, 1.5, 1e-9) || !near(second, 2.5, 1e-9) {
		t.Errorf("ended at %v and %v, expected 1.5 and 2.5", first, second)
	}
}

func TestMachine_HasWhatOtherProgramsLeave(t *testing.T) {
	l := &Loop{}
	m := NewMachine(l, 2)
	m.others = 0.2
	var one, two float64
	m.Run(1, 1, false, func() { one = l.Now() })
	m.Run(1, 1, false, func() { two = l.Now() })
	l.Run(100)
	if !near(one, 1.25, 1e-9) || !near(two, 1.25, 1e-9) || !near(m.Busy(), 2, 1e-9) {
		t.Errorf("ended at %v and %v after %v core seconds, expected 1.25 twice and 2", one, two, m.Busy())
	}
}

func TestMachine_EndsTasksAfterManyDays(t *testing.T) {
	l, n := &Loop{}, 0
	m := NewMachine(l, 2)
	var next func()
	next = func() {
		m.Run(0.0123456789, 2, false, func() { n++ })
		m.Run(0.0023456789, 1, false, func() { n++ })
		l.After(3600.1234567, next)
	}
	next()
	l.Run(100 * 86400)
	if want := 2 * 2400; n != want || l.Events() > uint64(6*want) {
		t.Errorf("%d tasks of %d ended in %d events", n, want, l.Events())
	}
}

func TestSerial_WaitsAsTheTheoryOfQueuesSays(t *testing.T) {
	l, r := &Loop{}, rand.New(rand.NewPCG(3, 3))
	d := Serial{loop: l}
	n, sum := 0, 0.0
	var next func()
	next = func() {
		began := l.Now()
		d.Do(1, 0, func() { n++; sum += l.Now() - began })
		l.After(r.ExpFloat64()/0.7, next)
	}
	next()
	l.Run(300000)
	// M/D/1: 1 + ρ/(2(1-ρ)).
	if mean, want := sum/float64(n), 1+0.7/0.6; !near(mean, want, 0.03) {
		t.Errorf("a request took %.3f on average, expected %.3f", mean, want)
	}
}

func TestQuantiles_AreWithinOnePercent(t *testing.T) {
	var q Quantiles
	for i := range 10000 {
		q.Add(float64(i+1) / 1000)
	}
	for p, want := range map[float64]float64{0.5: 5, 0.99: 9.9, 1: 10} {
		if got := q.At(p); !near(got, want, 0.01) {
			t.Errorf("quantile %v is %v, expected %v", p, got, want)
		}
	}
	if !near(q.Mean(), 5.0005, 1e-9) || q.Max() != 10 {
		t.Errorf("mean %v and maximum %v", q.Mean(), q.Max())
	}
}

func TestCache_EvictsTheLeastRecentlyUsedModel(t *testing.T) {
	l := lru{room: 3}
	for _, m := range []int{1, 2, 3} {
		l.add(m, 1)
	}
	l.has(1)
	l.add(4, 1)
	for m, want := range map[int]bool{1: true, 2: false, 3: true, 4: true} {
		if got := l.models[m] != nil; got != want {
			t.Errorf("model %d is loaded: %v, expected %v", m, got, want)
		}
	}
	l.add(5, 10)
	if len(l.models) != 1 || l.models[5] == nil {
		t.Errorf("%d models beside one that is larger than the cache", len(l.models)-1)
	}
}

func TestRun_IsAFunctionOfItsSeed(t *testing.T) {
	c := config()
	c.BulkRate, c.JobImages, c.PieceImages, c.Trainings = 20, 200, 32, 0.01
	c.Failures = []Failure{{ServeProcess, 0, 40, 20}, {WorkerProcess, 1, 50, 20}, {ServerProcess, 0, 60, 20}}
	a, b := run(t, c), run(t, c)
	if !reflect.DeepEqual(a, b) {
		t.Errorf("two runs differ:\n%+v\n%+v", a, b)
	}
	c.Seed = 2
	if reflect.DeepEqual(a, run(t, c)) {
		t.Error("another seed has the same result")
	}
}

func TestRun_UsesTheWorkThatArrives(t *testing.T) {
	c := config()
	c.Seconds = 520
	r := run(t, c)
	if want := c.Rate * r.Seconds; !near(float64(r.Detections), want, 0.02) {
		t.Errorf("%d detections, expected %.0f", r.Detections, want)
	}
	// A single image on an idle process runs on both cores, at 1.2 times the work.
	k := c.Costs
	least := c.Rate * (k.Receive + k.Decode + k.Infer + k.Answer) / float64(c.Serve*c.Cores)
	most := least * 1.2
	if r.ServeUse < least || r.ServeUse > most*1.02 {
		t.Errorf("%.3f of the cores are used, expected %.3f to %.3f", r.ServeUse, least, most)
	}
}

func TestRun_ForwardsToTheOwnersInsteadOfLoadingEveryModelEverywhere(t *testing.T) {
	c := config()
	c.Serve, c.Models, c.CacheBytes, c.Zipf, c.Rate = 8, 200, 60*20e6, 0.5, 60
	with := run(t, c)
	c.Owners = 0
	without := run(t, c)
	if with.Forwards == 0 || without.Forwards != 0 {
		t.Errorf("%d and %d forwards", with.Forwards, without.Forwards)
	}
	if with.Loads*4 > without.Loads {
		t.Errorf("%d loads with owners and %d without", with.Loads, without.Loads)
	}
}

func TestRun_RejectsWhatItCannotServe(t *testing.T) {
	c := config()
	c.Serve, c.Rate = 1, 500
	r := run(t, c)
	if r.Rejected == 0 || r.ServeUse < 0.98 {
		t.Errorf("%d rejected at a use of %.2f", r.Rejected, r.ServeUse)
	}
	if capacity := float64(c.Cores) / (0.001 + 0.002 + 0.010 + 0.0005); !near(float64(r.Detections)/r.Seconds, capacity, 0.1) {
		t.Errorf("%.0f detections a second, expected about %.0f", float64(r.Detections)/r.Seconds, capacity)
	}
}

func TestRun_AnswersEveryDetectionWhenProcessesEnd(t *testing.T) {
	c := config()
	c.Arrivals = []float64{}
	for i := range 4000 {
		c.Arrivals = append(c.Arrivals, float64(i)*0.02)
	}
	c.Warmup = 0
	c.Failures = []Failure{{ServeProcess, 0, 30, 20}, {ServerProcess, 1, 40, 20}}
	r := run(t, c)
	if r.Detections+r.Rejected != len(c.Arrivals) || r.Waiting != 0 {
		t.Errorf("%d answered, %d rejected and %d waiting of %d", r.Detections, r.Rejected, r.Waiting, len(c.Arrivals))
	}
	if r.Retried == 0 {
		t.Error("no detection was sent again")
	}
}

func TestRun_JudgesEachImageOfABulkJobOnceWhenWorkersAndServersEnd(t *testing.T) {
	c := config()
	c.Rate, c.Warmup, c.Seconds = 0, 0, 400
	c.BulkAtOnce, c.BulkRate, c.JobImages, c.PieceImages = true, 1, 5000, 64
	whole := run(t, c)
	if whole.BulkImages != 5000 || whole.JobTime.Count() != 1 || whole.Waiting != 0 {
		t.Fatalf("%d images, %d jobs ended, %d waiting", whole.BulkImages, whole.JobTime.Count(), whole.Waiting)
	}
	c.Failures = []Failure{{WorkerProcess, 0, 12, 30}, {WorkerProcess, 1, 90, 30}, {ServerProcess, 0, 6, 10}, {ServerProcess, 1, 100, 10}}
	broken := run(t, c)
	if broken.BulkImages != 5000 || broken.JobTime.Count() != 1 || broken.Waiting != 0 {
		t.Errorf("with failures %d images, %d jobs ended, %d waiting", broken.BulkImages, broken.JobTime.Count(), broken.Waiting)
	}
	if broken.Redelivered == 0 || broken.JobTime.Max() <= whole.JobTime.Max() {
		t.Errorf("%d redelivered, %.1f s instead of %.1f s", broken.Redelivered, broken.JobTime.Max(), whole.JobTime.Max())
	}
	// Two workers with two cores, and what is not parallel.
	if least := 5000 * 0.012 / 4; whole.JobTime.Max() < least || whole.JobTime.Max() > 2*least {
		t.Errorf("the job took %.1f s, expected %.1f s or somewhat more", whole.JobTime.Max(), least)
	}
}

func TestProfile_HasItsMeanAndItsPeak(t *testing.T) {
	p := newProfile(&Config{Rate: 10, Peak: 3, Day: 86400})
	sum, most := 0.0, 0.0
	for i := range 86400 {
		r := p.at(float64(i))
		sum += r
		most = max(most, r)
	}
	if !near(sum/86400, 10, 1e-3) || !near(most, 30, 1e-3) {
		t.Errorf("mean %.3f and peak %.3f, expected 10 and 30", sum/86400, most)
	}
	ramped := newProfile(&Config{Rate: 10, Ramp: 100})
	if half, all := ramped.at(50), ramped.at(100); half != 5 || all != 10 {
		t.Errorf("%v after half of the ramp and %v after it, expected 5 and 10", half, all)
	}
}

func TestMachine_SlowsDownFromATimeOn(t *testing.T) {
	l := &Loop{}
	m := NewMachine(l, 1)
	var end float64
	m.Run(2, 1, false, func() { end = l.Now() })
	l.After(1, func() { m.slowDown(3) })
	l.Run(100)
	// The second half takes three times as long, and is as much more work.
	if !near(end, 4, 1e-9) || !near(m.Busy(), 4, 1e-9) {
		t.Errorf("ended at %v after %v core seconds, expected 4 and 4", end, m.Busy())
	}
}

func TestRun_SlowsDownTheCoreThatIsSlow(t *testing.T) {
	c := config()
	c.Shared, c.Pinned, c.Threads, c.Rate, c.Clients = true, true, 1, 0, 8
	even := run(t, c)
	// The services are asked in turn, so that the slower one sets the rate.
	c.Slowness = [][]float64{{1}, {2}}
	if r := run(t, c); !near(float64(r.Detections), float64(even.Detections)/2, 0.05) {
		t.Errorf("%d detections, expected half of %d", r.Detections, even.Detections)
	}
	for name, change := range map[string]func(*Config){
		"one factor for two cores": func(c *Config) { c.Slowness = [][]float64{{1}} },
		"machines of their own":    func(c *Config) { c.Shared, c.Pinned = false, false },
		"processes of two threads": func(c *Config) { c.Threads = 2 },
	} {
		bad := c
		change(&bad)
		if _, err := Run(bad); err == nil {
			t.Errorf("%s are accepted", name)
		}
	}
}
