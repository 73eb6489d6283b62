package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/deepmed/anomaly/bench/cluster/sim"
	"github.com/deepmed/anomaly/bench/internal/processes"
)

// goal is the largest difference between the simulation and the processes, as a share.
const goal = 0.15

// setup is running processes, and the same in the simulation.
type setup struct {
	name   string
	load   load
	config sim.Config
	images [][]byte // for a bulk job; nil if none is compared
	// shown is set if the differences are shown and not judged.
	shown bool
	stop  func()
}

// row compares one load.
type row struct {
	setup, load string
	// got are of the processes, want of the simulation: detections a second, p50 and p99 in
	// seconds. A 0 in want is not compared.
	got, want [3]float64
	// work is the measured work of a detection in all processes and the client, in core
	// seconds, which the simulation uses. costs is the work by the measured costs.
	work, costs float64
	others      float64 // share of the processors that other programs used
	failed      int     // detections that were not answered, less those in the simulation
	shown       bool    // and not judged
}

// ratio returns the simulated value divided by the measured one, or 0.
func (r *row) ratio(i int) float64 {
	if r.want[i] == 0 || r.got[i] == 0 {
		return 0
	}
	return r.want[i] / r.got[i]
}

// validate measures the service times, and then compares the simulation with the processes.
func (b *bench) validate(ctx context.Context, side int, seconds float64, seed int64) error {
	began := time.Now()
	m := &measured{Date: began.Format(time.DateOnly), Machine: machine()}
	s, err := b.size(ctx, side, 300)
	if err != nil {
		return err
	}
	n, err := b.measureNATS(ctx, 3, runtime.NumCPU())
	if err != nil {
		return err
	}
	model, err := os.ReadFile(b.modelPath(side))
	if err != nil {
		return err
	}
	// The time that memory takes changes within a minute, and with it the work of a detection:
	// it is measured between the loads, and the median counts.
	sizes := []sizeCosts{*s}
	var compared []comparison
	for _, open := range b.setups() {
		x, err := open(ctx, model)
		if err != nil {
			return err
		}
		got, err := x.compare(ctx, seconds, seed)
		x.stop()
		if err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
		compared = append(compared, got...)
		again := *s
		if err := b.detections(ctx, model, 200, &again); err != nil {
			return err
		}
		sizes = append(sizes, again)
	}
	m.Sizes, m.NATS = []sizeCosts{medianWork(sizes)}, *n
	costs, err := m.costs(side)
	if err != nil {
		return err
	}
	fmt.Printf("%s, %s, %d px: decode %.2f ms, infer %.2f, on all threads %.2f of it, the rest %.2f, all cores busy ×%.2f; the work of three measurements:",
		m.Date, m.Machine, side, costs.Decode*1e3, costs.Infer*1e3, costs.AllThreads, (costs.Receive+costs.Answer)*1e3, costs.Contention)
	for _, s := range sizes {
		fmt.Printf(" %.2f", busyWork(s)*1e3)
	}
	var rows []row
	for _, simulated := range compared {
		r, err := simulated(costs)
		if err != nil {
			return err
		}
		rows = append(rows, r)
	}
	fmt.Printf(" ms\n\n%s\nin %v\n", table(rows), time.Since(began).Round(time.Second))
	return judge(rows)
}

// comparison simulates a load that processes have had, and compares both.
type comparison func(sim.Costs) (row, error)

// busyWork returns the work of a detection while all cores are busy.
func busyWork(s sizeCosts) float64 {
	c := s.Costs
	return (c.Receive + c.Decode + c.Infer + c.Answer) * c.Contention
}

// medianWork returns the costs whose work is the median.
func medianWork(list []sizeCosts) sizeCosts {
	sorted := slices.SortedFunc(slices.Values(list), func(a, b sizeCosts) int { return cmp.Compare(busyWork(a), busyWork(b)) })
	return sorted[len(sorted)/2]
}

// setups returns functions that start processes.
func (b *bench) setups() []func(context.Context, []byte) (*setup, error) {
	return []func(context.Context, []byte) (*setup, error){b.one, b.small}
}

// base returns the simulation of this machine.
func base() sim.Config {
	return sim.Config{Serve: 1, Servers: 1, Replicas: 1, Cores: runtime.NumCPU(), ServerCores: 1, Shared: true,
		Models: 1, CacheBytes: 256 << 20, BatchSize: 1, Loaded: true}
}

// one is a single `anomaly serve`, with its jobs and models in folders. It is shown only: its
// threads share two cores, and Linux lets them wait for a core for some 5 ms a detection while
// another is idle (run_delay of schedstat), which is not simulated. Processes of one thread on
// a core of their own, which the cluster has, do not wait so.
func (b *bench) one(ctx context.Context, model []byte) (*setup, error) {
	p, l, err := b.serving(ctx, "one", model)
	if err != nil {
		return nil, err
	}
	return &setup{name: "one process", load: l, config: base(), shown: true, stop: p.Stop}, nil
}

// compare runs all loads.
func (x *setup) compare(ctx context.Context, seconds float64, seed int64) ([]comparison, error) {
	if _, err := x.load.closed(ctx, 4, 50); err != nil { // warm
		return nil, err
	}
	x.config.Idle = idleWork(ctx)
	fmt.Printf("%s: idle, the processes use %.3f cores\n", x.name, x.config.Idle)
	x.config.Seed = seed
	var list []comparison
	// Clients without a pause; the most of them show what the processes can do.
	capacity := 0.0
	for _, clients := range []int{1, 4, 16} {
		o, err := x.observe(func() (*observed, error) {
			return x.load.closedFor(ctx, clients, time.Duration(seconds*float64(time.Second)))
		})
		if err != nil {
			return nil, err
		}
		capacity = max(capacity, o.rate())
		list = append(list, func(costs sim.Costs) (row, error) {
			c := x.config
			c.Costs, c.Clients, c.Seconds = costs, clients, seconds
			r, work, err := o.simulate(c)
			return x.row(fmt.Sprintf("%d clients", clients), o, r, work, float64(r.Detections)/r.Seconds), err
		})
	}
	for i, share := range []float64{0.3, 0.6, 0.8} {
		arrivals := poisson(capacity*share, seconds, uint64(seed)+uint64(i))
		o, err := x.observe(func() (*observed, error) { return x.load.open(ctx, arrivals) })
		if err != nil {
			return nil, err
		}
		list = append(list, func(costs sim.Costs) (row, error) {
			c := x.config
			c.Costs, c.Arrivals, c.Seconds = costs, arrivals, seconds+60
			r, work, err := o.simulate(c)
			// Answers have the rate of the arrivals unless they fall behind.
			rate := float64(r.Detections) / (arrivals[len(arrivals)-1] + r.Latency.At(0.5))
			return x.row(fmt.Sprintf("%.0f a second", capacity*share), o, r, work, rate), err
		})
	}
	if x.images != nil {
		c, err := x.bulk(ctx)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// idleWork returns the work that all processes do in a second while no load runs.
func idleWork(ctx context.Context) float64 {
	const seconds = 4
	before := treeWork()
	select {
	case <-ctx.Done():
	case <-time.After(seconds * time.Second):
	}
	return (treeWork() - before) / seconds
}

// poisson returns the times of independent arrivals.
func poisson(rate, seconds float64, seed uint64) (list []float64) {
	r := rand.New(rand.NewPCG(seed, 1))
	for t := r.ExpFloat64() / rate; t < seconds; t += r.ExpFloat64() / rate {
		list = append(list, t)
	}
	return list
}

// observation is a load that has run.
type observation struct {
	*observed
	idle, others float64 // core seconds in a second without a load; share of other programs
}

// observe runs a load.
func (x *setup) observe(run func() (*observed, error)) (*observation, error) {
	before, own := busyCores(), treeWork()
	o, err := run()
	if err != nil {
		return nil, err
	}
	work := treeWork() - own
	out := &observation{o, x.config.Idle, max((busyCores()-before)-work, 0) / (o.seconds * float64(runtime.NumCPU()))}
	fmt.Printf("%s: %.1f a second, p50 %.2f ms, p99 %.2f, work %.2f; others used %.0f %%\n", x.name, o.rate(), o.quantile(0.5)*1e3, o.quantile(0.99)*1e3, out.work()*1e3, out.others*100)
	return out, nil
}

// around returns the work of a detection on a machine at about a time, in the shortest time
// around it in which enough detections were answered that a part of one makes little
// difference.
func (o *observation) around(machine int, at float64) float64 {
	const enough = 30
	first, last := 0, len(o.samples)-1
	for half := sim.SlownessStep; first < last; half += sim.SlownessStep / 2 {
		i := max(sort.Search(last, func(i int) bool { return o.samples[i].at > at-half })-1, 0)
		j := sort.Search(last, func(i int) bool { return o.samples[i].at >= at+half })
		if n := o.samples[j].answered[machine] - o.samples[i].answered[machine]; n >= enough || i == 0 && j == last {
			return o.between(machine, o.samples[i], o.samples[j])
		}
	}
	return o.work()
}

// between returns the work of a detection on a machine between two samples.
func (o *observation) between(machine int, first, last sample) float64 {
	idle := o.idle / float64(len(last.work)) * (last.at - first.at)
	return (last.work[machine] - first.work[machine] - idle) / float64(max(last.answered[machine]-first.answered[machine], 1))
}

// work returns the mean work of a detection.
func (o *observation) work() float64 {
	first, last := o.samples[0], o.samples[len(o.samples)-1]
	work, n := -o.idle*(last.at-first.at), 0
	for i := range last.work {
		work += last.work[i] - first.work[i]
		n += last.answered[i] - first.answered[i]
	}
	return work / float64(max(n, 1))
}

// simulate simulates the load with the measured work of a detection at each time: the time of
// the same work differs by tens of percent from second to second, with what other guests of
// the host do to the memory that they share. It also returns the work of a detection
// with the costs as they are.
func (o *observation) simulate(c sim.Config) (r sim.Result, costs float64, err error) {
	c.Others = o.others
	workOf := func() float64 {
		return (r.ServeUse*float64(c.Cores) - c.Idle) * r.Seconds / float64(max(r.Detections+r.BulkImages, 1))
	}
	if r, err = sim.Run(c); err != nil {
		return r, 0, err
	}
	costs = workOf()
	for machine := range o.samples[0].work {
		var factors []float64
		for t := 0.0; t < o.seconds; t += sim.SlownessStep {
			factors = append(factors, o.around(machine, t+sim.SlownessStep/2)/costs)
		}
		c.Slowness = append(c.Slowness, factors)
	}
	// Detections that run on all threads are more work, and how many do depends on the work.
	for range 2 {
		if r, err = sim.Run(c); err != nil {
			return r, 0, err
		}
		for _, factors := range c.Slowness {
			for i := range factors {
				factors[i] *= o.work() / workOf()
			}
		}
	}
	r, err = sim.Run(c)
	return r, costs, err
}

// row compares a load with a simulation.
func (x *setup) row(name string, o *observation, r sim.Result, costs, rate float64) row {
	return row{setup: x.name, load: name, others: o.others, failed: o.failed - r.Rejected, shown: x.shown, work: o.work(), costs: costs,
		got:  [3]float64{o.rate(), o.quantile(0.5), o.quantile(0.99)},
		want: [3]float64{rate, r.Latency.At(0.5), r.Latency.At(0.99)}}
}

// table writes the rows as text.
func table(rows []row) string {
	var s strings.Builder
	w := tabwriter.NewWriter(&s, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PROCESSES\tLOAD\ta second\tp50, ms\tp99, ms\tsimulated\t\t\tratios\t\t\twork, ms\tby costs\tothers")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.2f\t%.2f\t%.1f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.0f %%\n", r.setup, r.load, r.got[0], r.got[1]*1e3, r.got[2]*1e3,
			r.want[0], r.want[1]*1e3, r.want[2]*1e3, r.ratio(0), r.ratio(1), r.ratio(2), r.work*1e3, r.costs*1e3, r.others*100)
	}
	w.Flush()
	return s.String()
}

// judge returns an error if throughputs or p99 differ by more than the goal in a row that is
// judged, or if detections failed.
func judge(rows []row) error {
	var bad []string
	for _, r := range rows {
		if r.failed > 0 {
			bad = append(bad, fmt.Sprintf("%s, %s: %d detections failed", r.setup, r.load, r.failed))
		}
		for i, what := range map[int]string{0: "throughput", 2: "p99"} {
			if q := r.ratio(i); q != 0 && math.Abs(q-1) > goal && !r.shown {
				bad = append(bad, fmt.Sprintf("%s, %s: %s %.2f", r.setup, r.load, what, q))
			}
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("beyond %.0f %%: %s", goal*100, strings.Join(bad, "; "))
	}
	fmt.Printf("all throughputs and p99 of the cluster are within %.0f %%\n", goal*100)
	return nil
}

// busyCores returns the busy time of all cores of this machine, in seconds.
func busyCores() float64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	sum := 0.0
	for i, field := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 { // the name, idle, waiting for devices, guests
			continue
		}
		v, _ := strconv.ParseFloat(field, 64)
		sum += v / 100
	}
	return sum
}

// treeWork returns the CPU time of this process and of the processes that it started, in
// seconds.
func treeWork() float64 { return processes.CPU(tree()...).Seconds() }

// tree returns the ids of this process and of the processes that it started.
func tree() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	me := os.Getpid()
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && (pid == me || parent(pid) == me) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}
