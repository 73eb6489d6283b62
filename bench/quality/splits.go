package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"gonum.org/v1/gonum/stat"
)

// errRate is returned when the measured false alarm rate differs from the requested one.
var errRate = errors.New("the false alarm rate is not the requested one")

// splitting is the options of `splits`.
type splitting struct {
	trained []int // numbers of training images
	splits  int
	options trainer.Options
	within  float64
	whole   bool
	out     string
}

// alarms is the false alarm rates of one data set and number of training images.
type alarms struct {
	Program string `json:"program"`
	Set     string `json:"set"`
	Trained int    `json:"trained_images"`
	Tested  int    `json:"tested_images"`
	Level   int    `json:"level"`
	Side    int    `json:"image_size"`
	// Rates are the rates of the splits; Mean is their mean, and Error its standard
	// error, which assumes independent splits.
	Rates []float64 `json:"rates"`
	Mean  float64   `json:"mean"`
	Error float64   `json:"standard_error"`
	// Promised is the requested rate, Ranked the expected rate at the threshold's rank
	// among the calibration scores, and Supported the minimum achievable rate,
	// 1/(n+1) for n calibration images.
	Promised  float64 `json:"promised"`
	Ranked    float64 `json:"ranked"`
	Supported float64 `json:"supported"`
	Seconds   float64 `json:"seconds"`
}

func splitsCommand() *cobra.Command {
	s := splitting{}
	c := &cobra.Command{
		Use:   "splits DATASET...",
		Short: "Measure the false alarm rate over random splits of a data set's normal images",
		Long: "Repeatedly trains on a random part of train/good and test/good, and scores the rest.\n" +
			"Fails if the mean over the splits is not within --within of the requested rate.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			e, err := ort.Open(ort.Options{})
			if err != nil {
				return err
			}
			return s.run(c.Context(), e, args, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.IntSliceVar(&s.trained, "train", []int{20, 50, 200}, "number of training images")
	f.IntVar(&s.splits, "splits", 20, "random splits")
	f.IntVar(&s.options.Level, "level", 1, "training level")
	f.IntVar(&s.options.ImageSize, "image-size", 64, "image side, in pixels")
	f.Float64Var(&s.options.FalseAlarmRate, "false-alarm-rate", trainer.DefaultFalseAlarmRate, "requested false alarm rate")
	f.Float64Var(&s.within, "within", 0.02, "permitted difference between the mean and the requested rate")
	f.BoolVar(&s.whole, "whole", false, "train all epochs, which no verdict depends on")
	f.StringVar(&s.out, "out", "", "append JSON lines to this file, and reuse those in it")
	return c
}

func (s *splitting) run(ctx context.Context, e *ort.Engine, sets []string, out, log io.Writer) error {
	program, err := fingerprint()
	if err != nil {
		return err
	}
	done, err := read[alarms](s.out)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "anomaly-splits-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var all []alarms
	for _, set := range sets {
		files, err := s.shrink(ctx, set, filepath.Join(dir, filepath.Base(set)))
		if err != nil {
			return err
		}
		for _, n := range s.trained {
			if n >= len(files) {
				return fmt.Errorf("%s has %d normal images, too few to train on %d and test on the rest", set, len(files), n)
			}
			a := alarms{Program: program, Set: filepath.Base(set), Trained: n, Tested: len(files) - n, Level: s.options.Level, Side: s.options.ImageSize, Promised: s.options.FalseAlarmRate}
			if old := a.among(done, s.splits); old != nil {
				all = append(all, *old)
				continue
			}
			if err := s.count(ctx, e, files, dir, &a); err != nil {
				return err
			}
			fmt.Fprintf(log, "%s, %d images: %.1f %% false alarms, %.0f s\n", a.Set, n, 100*a.Mean, a.Seconds)
			if err := appendTo(s.out, a); err != nil {
				return err
			}
			all = append(all, a)
		}
	}
	return s.print(out, all)
}

// among returns the same measurement from earlier ones, or nil.
func (a alarms) among(done []alarms, splits int) *alarms {
	for _, d := range done {
		if d.Program == a.Program && d.Set == a.Set && d.Trained == a.Trained && d.Tested == a.Tested && d.Level == a.Level && d.Side == a.Side &&
			d.Promised == a.Promised && len(d.Rates) == splits {
			return &d
		}
	}
	return nil
}

// shrink writes a data set's normal images at the network's input size, to avoid
// decoding and resizing them for each split. The results are the same.
func (s *splitting) shrink(ctx context.Context, set, folder string) ([]string, error) {
	originals, err := normalImages(set)
	if err != nil {
		return nil, err
	}
	side := s.options.ImageSize
	files := make([]string, len(originals))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, original := range originals {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			data, err := os.ReadFile(original)
			if err != nil {
				return err
			}
			pixels, err := imagefile.Prepare(data, models.Square(side), imagefile.Options{Upright: true})
			if err != nil {
				return fmt.Errorf("%s: %w", original, err)
			}
			files[i] = filepath.Join(folder, fmt.Sprintf("%05d.png", i))
			return save(opaque(pixels, side, side), files[i])
		})
	}
	return files, group.Wait()
}

// count trains on each split and scores the remaining images.
func (s *splitting) count(ctx context.Context, e *ort.Engine, files []string, dir string, a *alarms) error {
	began := time.Now()
	for split := range s.splits {
		order := rand.New(rand.NewPCG(uint64(split), 0)).Perm(len(files))
		picked := make([]string, len(files))
		for i, at := range order {
			picked[i] = files[at]
		}
		folder := filepath.Join(dir, "split")
		if err := link(folder, picked[:a.Trained]); err != nil {
			return err
		}
		o := s.options
		o.Seed = int64(split)
		l, err := train(ctx, e, folder, o, !s.whole)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(folder); err != nil {
			return err
		}
		if err := judge(e, l.model, func(d *inference.Detector) error {
			judged, err := evaluation.Score(ctx, d, picked[a.Trained:], e.Threads())
			if err != nil {
				return err
			}
			n := 0
			for _, j := range judged {
				if j.IsAnomaly {
					n++
				}
			}
			a.Rates = append(a.Rates, float64(n)/float64(len(judged)))
			return nil
		}); err != nil {
			return err
		}
		if d := l.model.Metadata.Decision; d != nil {
			a.Supported = d.MinFalseAlarmRate
		}
	}
	a.summarize()
	a.Seconds = time.Since(began).Seconds()
	return nil
}

func (a *alarms) summarize() {
	mean, deviation := stat.MeanStdDev(a.Rates, nil)
	a.Mean = mean
	if len(a.Rates) > 1 {
		a.Error = deviation / math.Sqrt(float64(len(a.Rates)))
	}
	n := float64(a.Trained)
	rank := min(math.Ceil((n+1)*(1-a.Promised)), n)
	a.Ranked = 1 - rank/(n+1)
}

// print writes the table. It returns errRate if a mean differs by more than s.within
// from the requested rate.
func (s *splitting) print(w io.Writer, all []alarms) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "DATA SET\tTRAINED ON\tTESTED ON\tFALSE ALARMS\tSTANDARD ERROR\tLOWEST\tHIGHEST\tREQUESTED\tBY RANK\tMINIMUM\t\t")
	off := 0
	for _, a := range all {
		verdict := ""
		if math.Abs(a.Mean-a.Promised) > s.within {
			verdict = "off"
			off++
		}
		lowest, highest := math.Inf(1), math.Inf(-1)
		for _, r := range a.Rates {
			lowest, highest = min(lowest, r), max(highest, r)
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%.1f %%\t%.1f\t%.1f %%\t%.1f %%\t%.1f %%\t%.1f %%\t%.1f %%\t%s\t\n", a.Set, a.Trained, a.Tested,
			100*a.Mean, 100*a.Error, 100*lowest, 100*highest, 100*a.Promised, 100*a.Ranked, 100*a.Supported, verdict)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if off > 0 {
		return fmt.Errorf("%w: %d of %d differ by more than %.1f percentage points", errRate, off, len(all), 100*s.within)
	}
	return nil
}
