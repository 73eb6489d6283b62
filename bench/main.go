// Command bench compares this service with PyTorch and prints tables: the training
// step, the forward pass of the backbone, the loss curve, a training over HTTP, a
// training from a cold start, /detect under load, with and without a concurrent
// training, and the memory of trainings on many images and of a 2 GB upload. Run it
// with `make bench`, which installs the peers.
//
// A machine's speed drifts, so the two sides alternate in rounds, and the tables
// show ratios of medians.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

type options struct {
	rounds, steps int
	sides         []string
	batches       []string
	only          string
	tiles         string
	level         int
	trainRounds   int
	profile       bool
}

func main() {
	var o options
	sides := flag.String("sides", "128,256,384", "image sides of the step")
	batches := flag.String("batches", "16,8", "batch sizes of the step")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds in which the two sides alternate")
	flag.IntVar(&o.steps, "steps", 5, "steps per round")
	flag.StringVar(&o.only, "only", "", "run a single part: step, backbone, losses, train, start, serve, pressure, memory or upload")
	flag.IntVar(&o.level, "level", 3, "level of the trainings through POST /train")
	flag.IntVar(&o.trainRounds, "train-rounds", 2, "rounds of the trainings through POST /train, which take minutes")
	flag.BoolVar(&o.profile, "profile", false, "also print the time of each operator of the step")
	flag.StringVar(&o.tiles, "tiles", "testdata/tiles", "folder with images")
	flag.Parse()
	o.sides, o.batches = strings.Split(*sides, ","), strings.Split(*batches, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	python := os.Getenv("BENCH_PYTHON")
	if python == "" {
		return fmt.Errorf("BENCH_PYTHON is not set; run `make bench`")
	}
	dir, err := os.MkdirTemp("", "anomaly-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Printf("%s, %s\n\n", time.Now().Format(time.DateOnly), machine())
	for _, part := range []struct {
		name string
		run  func(context.Context, options, string, string) error
	}{{"step", steps}, {"backbone", backbones}, {"losses", losses}, {"train", trainings}, {"start", starts}, {"serve", serve}, {"pressure", pressure}, {"memory", memory}, {"upload", upload}} {
		if o.only != "" && o.only != part.name {
			continue
		}
		if err := part.run(ctx, o, python, dir); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// machine returns a description of the processor, if the system provides one.
func machine() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "processor unknown"
	}
	count, name := 0, ""
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			count++
			name = strings.TrimSpace(value)
		}
	}
	return fmt.Sprintf("%d × %s", count, name)
}

// series is the measurements of one side, one per round.
type series []float64

func (s series) median() float64 { return s.at(0.5) }

// at returns the q-quantile.
func (s series) at(q float64) float64 {
	t := slices.Sorted(slices.Values(s))
	return t[min(int(q*float64(len(t))), len(t)-1)]
}

// String returns the median and the range.
func (s series) String() string {
	return fmt.Sprintf("%.1f (%.1f–%.1f)", s.median(), slices.Min(s), slices.Max(s))
}

// over returns the ratio to another series for each round. The speed of the machine
// drifts by more than the two sides differ, but little within a round.
func (s series) over(t series) series {
	out := make(series, len(s))
	for i := range s {
		out[i] = s[i] / t[i]
	}
	return out
}

// fine is like String, with one more digit.
func (s series) fine() string {
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.median(), slices.Min(s), slices.Max(s))
}

func table(header ...string) *tabwriter.Writer {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(header, "\t"))
	return t
}

// output runs a command and returns its standard output. If it fails, the error
// contains its standard error.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, log.String())
	}
	return string(out), nil
}
