package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/deepmed/anomaly/bench/cluster/sim"
	"golang.org/x/sync/errgroup"
)

const (
	day = 86400.0
	// planned is how much busier the busiest moment of the day is than the mean.
	planned = 3.0
	// cores is the number of cores of a machine, as of the measured one.
	cores = 2
	// latencyGoal is the largest p99 of detections, in seconds, also while one serving process
	// has ended.
	latencyGoal = 0.5
	// mostUse is the largest share of the cores that is used at the busiest moment.
	mostUse = 0.7
	// mostNodes ends a search.
	mostNodes = 2048
)

// plan prints the tables of docs/scaling.md.
func plan(w io.Writer, m *measured, side int, seed int64, only string) error {
	costs, err := m.costs(side)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "measured %s, %s (%s); %d px, %.0f KB an image, %.0f MB a loaded model\n\n", m.Date, m.Machine, m.Command, side, costs.ImageFile/1e3, costs.ModelMemory/1e6)
	p := &planner{costs: costs, seed: seed, out: w}
	for _, part := range []struct {
		name string
		run  func() error
	}{{"detections", p.detections}, {"bulk", p.bulk}, {"trainings", p.trainings}} {
		if only != "" && only != part.name {
			continue
		}
		if err := part.run(); err != nil {
			return err
		}
	}
	return nil
}

type planner struct {
	costs sim.Costs
	seed  int64
	out   io.Writer
}

// base returns a cluster without work: servers with 4 cores and 3 replicas.
func (p *planner) base() sim.Config {
	return sim.Config{Seed: p.seed, Costs: p.costs, Serve: 2, Workers: 2, Servers: 3, Replicas: 3, Cores: cores, ServerCores: 4,
		Models: 1, Zipf: 1, Owners: 2, BatchSize: 1, CacheBytes: 2 << 30, Loaded: true}
}

// detections prints how many serving processes single detections need.
func (p *planner) detections() error {
	t := newTable(p.out, "SINGLE DETECTIONS", "images a day", "models", "cache", "nodes", "p50, ms", "p99", "p99 with a node lost", "cores used", "forwarded", "loads a second", "what limits")
	type plannedCase struct {
		perDay float64
		models int
		cache  float64
	}
	var cases []plannedCase
	for _, perDay := range []float64{1e3, 1e5, 1e8} {
		for _, models := range []int{10, 1000, 10000} {
			cases = append(cases, plannedCase{perDay, models, 2 << 30})
			if perDay > 1e6 && models >= 1000 {
				cases = append(cases, plannedCase{perDay, models, 12 << 30})
			}
		}
	}
	err := t.rows(len(cases), func(i int) ([]any, error) {
		k := cases[i]
		c := p.base()
		c.Models, c.CacheBytes, c.Workers = k.models, k.cache, 0
		c.Rate, c.Peak, c.Day = k.perDay/day, planned, day
		switch {
		case k.perDay > 1e6:
			// The busiest moment, which is not the first after a start: the rate rises, and
			// meanwhile all processes load what is used most.
			c.Rate, c.Peak, c.Ramp, c.Seconds, c.Warmup = c.Rate*planned, 1, 60, 100, 65
			c.Failures = []sim.Failure{{Kind: sim.ServeProcess, Index: 0, At: 77, For: 18}}
		case k.perDay > 1e4:
			c.Seconds, c.Warmup = day, 3600
			c.Failures = []sim.Failure{{Kind: sim.ServeProcess, Index: 0, At: day / 2, For: 600}}
		default:
			c.Seconds, c.Warmup = 20*day, day
			for i := range 19 { // every day, so that enough detections count
				c.Failures = append(c.Failures, sim.Failure{Kind: sim.ServeProcess, Index: i % 2, At: day * (float64(i) + 1.5), For: 600})
			}
		}
		c.From, c.Until = c.Failures[0].At, c.Failures[0].At+c.Failures[0].For
		nodes, r, err := p.least(c)
		if err != nil {
			return nil, err
		}
		limit := limits(r)
		if nodes == 2 {
			limit = "two, for a loss"
		}
		if nodes > mostNodes {
			return []any{k.perDay, k.models, gib(k.cache), "more than " + fmt.Sprint(mostNodes), "", "", "", "", "", "", limit}, nil
		}
		total := float64(max(r.Detections, 1))
		return []any{k.perDay, k.models, gib(k.cache), nodes, ms(r.Latency.At(0.5)), ms(r.Latency.At(0.99)), ms(r.Window.At(0.99)), percent(r.ServeUse),
			percent(float64(r.Forwards) / total), fmt.Sprintf("%.3g", float64(r.Loads)/r.Seconds), limit}, nil
	})
	if err != nil {
		return err
	}
	return t.flush()
}

// limits names what was used most.
func limits(r sim.Result) string {
	if r.ServeUse < 0.5 {
		return "memory for models"
	}
	return "processors"
}

// smallest returns the smallest number above low that meets a goal, which all larger ones then
// meet too. It doubles high until it meets the goal, and returns a number above most if none up
// to most does. From 64 on, the result is within 3 %, as fine as the noise of a simulation.
func smallest(low, high, most int, meets func(n int) (bool, error)) (int, error) {
	for {
		if ok, err := meets(high); err != nil {
			return 0, err
		} else if ok {
			break
		}
		step := high
		if high >= 64 {
			step = high / 4 // many more processes need not be better
		}
		if low, high = high, high+step; high > most {
			return high, nil
		}
	}
	for high-low > max(1, high/32) {
		middle := (low + high) / 2
		ok, err := meets(middle)
		if err != nil {
			return 0, err
		}
		if ok {
			high = middle
		} else {
			low = middle
		}
	}
	return high, nil
}

// least returns the smallest number of serving processes, at least two, that meets the goal,
// and its result. The number is above mostNodes if none suffices.
func (p *planner) least(c sim.Config) (int, sim.Result, error) {
	best, found := sim.Result{}, false
	c.EndAtReject = true
	meets := func(n int) (bool, error) {
		c.Serve = n
		r, err := sim.Run(c)
		ok := err == nil && r.Rejected == 0 && r.ServeUse <= mostUse && r.Latency.At(0.99) <= latencyGoal && (r.Window.Count() < 100 || r.Window.At(0.99) <= latencyGoal)
		if !found {
			fmt.Fprintf(os.Stderr, "%v a second, %d models, %d processes: %v\n", c.Rate, c.Models, n, ok)
		}
		if ok {
			best, found = r, true
		}
		return ok, err
	}
	k := p.costs
	work := c.Rate * (k.Receive + k.Decode + k.Infer + k.Answer)
	low, high := 1, max(2, int(work/float64(c.Cores)/mostUse*1.05))
	if high > 2 {
		low = int(work / float64(c.Cores) / mostUse * 0.9)
	}
	n, err := smallest(low, high, mostNodes, meets)
	return n, best, err
}

// bulk prints how many workers bulk jobs need, and what they do to NATS.
func (p *planner) bulk() error {
	t := newTable(p.out, "BULK JOBS OF 2,000 IMAGES", "images a day", "KB an image", "workers", "job, p50", "p99", "p99 with losses", "workers used", "stored, MB/s", "disk used", "NATS processors", "what limits")
	rates, sizes := []float64{1e3, 1e5, 1e8}, []float64{p.costs.ImageFile, 250e3}
	err := t.rows(len(rates)*len(sizes), func(i int) ([]any, error) {
		perDay, size := rates[i/len(sizes)], sizes[i%len(sizes)]
		c := p.base()
		c.Costs.ImageFile = size
		c.JobImages, c.PieceImages = 2000, pieceOf(size)
		c.BulkRate = perDay / day * planned
		c.Seconds, c.Warmup = 120, 40
		if c.BulkRate < 20 { // until there are enough jobs
			c.Seconds = 100 + 40*float64(c.JobImages)/c.BulkRate
		}
		workers, r, err := p.leastWorkers(c)
		if err != nil {
			return nil, err
		}
		limit := "workers"
		switch {
		case perDay*planned < 1e6:
			limit = "two, for a loss"
		case r.DiskUse > 0.5:
			limit = "NATS's disks"
		case r.ServerUse > 0.5:
			limit = "NATS's processors"
		}
		if workers > mostNodes {
			return []any{perDay, kb(size), "none suffices", "", "", "", "", "", percent(r.DiskUse), percent(r.ServerUse), limit}, nil
		}
		c.Workers = workers
		c.Failures = []sim.Failure{{Kind: sim.WorkerProcess, Index: 0, At: c.Warmup + 10, For: 60}, {Kind: sim.ServerProcess, Index: 1, At: c.Warmup + 20, For: 60}}
		lost, err := sim.Run(c)
		if err != nil {
			return nil, err
		}
		return []any{perDay, kb(size), workers, seconds(r.JobTime.At(0.5)), seconds(r.JobTime.At(0.99)), seconds(lost.JobTime.At(0.99)), percent(r.WorkerUse),
			fmt.Sprintf("%.3g", r.StoredBytes/r.Seconds/1e6), percent(r.DiskUse), percent(r.ServerUse), limit}, nil
	})
	if err != nil {
		return err
	}
	return t.flush()
}

// pieceOf returns the images of a piece, whose files have up to 480 KiB.
func pieceOf(image float64) int { return int(min(max(math.Floor(480*1024/image), 1), 128)) }

// leastWorkers returns the smallest number of workers, at least two, with which no work piles
// up, and its result. If none suffices, the number is above mostNodes, and the result is that of
// the largest number that was simulated.
func (p *planner) leastWorkers(c sim.Config) (int, sim.Result, error) {
	var best, last sim.Result
	offered := c.BulkRate * (c.Seconds - c.Warmup)
	meets := func(n int) (bool, error) {
		c.Workers = n
		r, err := sim.Run(c)
		last = r
		fmt.Fprintf(os.Stderr, "%.2f images a second of %.0f KB, %d workers: %d images, %d events\n", c.BulkRate, c.Costs.ImageFile/1e3, n, r.BulkImages, r.Events)
		ok := err == nil && r.JobTime.Count() > 0 && float64(r.BulkImages) > 0.9*offered && r.JobTime.At(0.99) < 120 && r.WorkerUse < 0.85
		if ok {
			best = r
		}
		return ok, err
	}
	n, err := smallest(1, 2, mostNodes/8, meets)
	if err == nil && n > mostNodes/8 {
		return mostNodes + 1, last, nil
	}
	return n, best, err
}

// trainings prints how long trainings wait.
func (p *planner) trainings() error {
	t := newTable(p.out, "TRAININGS", "models", "each anew every", "trainings a day", "workers", "training, p50", "p99", "workers used")
	for _, models := range []int{10, 1000, 10000} {
		for _, every := range []float64{1, 30} {
			c := p.base()
			c.Trainings = float64(models) / every / day
			c.Seconds, c.Warmup = 10*day, day
			if c.Trainings*c.Seconds < 200 {
				c.Seconds = day + 200/c.Trainings
			}
			for c.Workers = 2; ; c.Workers++ {
				r, err := sim.Run(c)
				if err != nil {
					return err
				}
				if r.WorkerUse < 0.7 && r.TrainTime.At(0.99) < 3600 {
					t.row(models, fmt.Sprintf("%.0f days", every), math.Round(c.Trainings*day), c.Workers, seconds(r.TrainTime.At(0.5)), seconds(r.TrainTime.At(0.99)), percent(r.WorkerUse))
					break
				}
			}
		}
	}
	return t.flush()
}

// textTable writes aligned columns.
type textTable struct{ w *tabwriter.Writer }

func newTable(w io.Writer, title string, columns ...string) *textTable {
	fmt.Fprintln(w, title)
	t := &textTable{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	fmt.Fprintln(t.w, strings.Join(columns, "\t"))
	return t
}

func (t *textTable) row(values ...any) {
	for i, v := range values {
		if f, ok := v.(float64); ok {
			v = number(f)
		}
		if i > 0 {
			fmt.Fprint(t.w, "\t")
		}
		fmt.Fprint(t.w, v)
	}
	fmt.Fprintln(t.w)
}

// rows writes n rows in their order, which are computed at once on all cores.
func (t *textTable) rows(n int, compute func(i int) ([]any, error)) error {
	list := make([][]any, n)
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i := range n {
		group.Go(func() (err error) {
			list[i], err = compute(i)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, r := range list {
		t.row(r...)
	}
	return nil
}

func (t *textTable) flush() error {
	fmt.Fprintln(t.w)
	return t.w.Flush()
}

// number writes a whole number with commas.
func number(f float64) string {
	s := fmt.Sprintf("%.0f", f)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func ms(s float64) string      { return fmt.Sprintf("%.0f", s*1e3) }
func percent(v float64) string { return fmt.Sprintf("%.0f %%", v*100) }
func kb(v float64) string      { return number(v / 1e3) }
func gib(v float64) string     { return fmt.Sprintf("%.0f GiB", v/(1<<30)) }
func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Millisecond).String()
}
