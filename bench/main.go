// Command bench measures this service beside PyTorch in one run and prints a
// table: the training step, the forward pass of the backbone, how the loss falls, a whole training through HTTP, a training from a
// cold start, /detect under load, alone and beside a training, the memory of trainings on many
// images, and of an upload of 2 GB. Run it by `make bench`, which brings the peers.
//
// The machine's pace drifts, so the two sides take turns in rounds, and what
// counts is the ratio of their medians.
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
	flag.IntVar(&o.rounds, "rounds", 5, "rounds that the two sides take turns in")
	flag.IntVar(&o.steps, "steps", 5, "steps in a round")
	flag.StringVar(&o.only, "only", "", "one part alone: step, backbone, losses, train, start, serve, pressure, memory or upload")
	flag.IntVar(&o.level, "level", 3, "level of the trainings through POST /train")
	flag.IntVar(&o.trainRounds, "train-rounds", 2, "rounds of those, which take minutes")
	flag.BoolVar(&o.profile, "profile", false, "also say what the step's operators take")
	flag.StringVar(&o.tiles, "tiles", "testdata/tiles", "real images, any folders")
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
		return fmt.Errorf("BENCH_PYTHON names no Python; run `make bench`")
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

// machine describes the processor, as far as the system tells.
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

// series is what one side measured, a number a round.
type series []float64

func (s series) median() float64 { return s.at(0.5) }

// at is the value that a share q of the series does not exceed.
func (s series) at(q float64) float64 {
	t := slices.Sorted(slices.Values(s))
	return t[min(int(q*float64(len(t))), len(t)-1)]
}

// String gives the median and the spread.
func (s series) String() string {
	return fmt.Sprintf("%.1f (%.1f–%.1f)", s.median(), slices.Min(s), slices.Max(s))
}

// over is each round's ratio to another series: both sides of a round met the
// machine at nearly the same pace, which drifts by more than they differ.
func (s series) over(t series) series {
	out := make(series, len(s))
	for i := range s {
		out[i] = s[i] / t[i]
	}
	return out
}

// fine is String with a digit more.
func (s series) fine() string {
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.median(), slices.Min(s), slices.Max(s))
}

func table(header ...string) *tabwriter.Writer {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(header, "\t"))
	return t
}

// output runs a command and gives what it printed; its log is shown only when
// it fails.
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
