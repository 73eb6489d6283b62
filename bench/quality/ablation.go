package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"text/tabwriter"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/decision"
	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// ablated is the result of one ablation on one data set: means over the kinds of defects.
type ablated struct {
	Program     string  `json:"program"`
	Ablation    string  `json:"ablation"`
	Set         string  `json:"set"`
	Folder      string  `json:"folder"`
	Level       int     `json:"level"`
	Side        int     `json:"image_size"`
	Seed        int64   `json:"seed"`
	AUROC       float64 `json:"auroc"`
	Hits        float64 `json:"hits"` // share of defective images above the threshold
	FalseAlarms float64 `json:"false_alarms"`
}

// same reports whether two rows are of the same measurement.
func (a ablated) same(b ablated) bool {
	a.AUROC, a.Hits, a.FalseAlarms = b.AUROC, b.Hits, b.FalseAlarms
	return a == b
}

func ablationCommand() *cobra.Command {
	var (
		o    trainer.Options
		only []string
		out  string
	)
	c := &cobra.Command{
		Use:   "ablation DATASET...",
		Short: "Measure the contribution of each component of the anomaly score, by removing it",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			all, err := ablations(only)
			if err != nil {
				return err
			}
			e, err := ort.Open(ort.Options{})
			if err != nil {
				return err
			}
			return ablate(c.Context(), e, args, all, o, out, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.IntVar(&o.Level, "level", 1, "training level")
	f.IntVar(&o.ImageSize, "image-size", 128, "image side, in pixels")
	f.Int64Var(&o.Seed, "seed", 0, "training seed")
	f.StringSliceVar(&only, "only", nil, "names of ablations (default: all of them)")
	f.StringVar(&out, "out", "", "append JSON lines to this file, and reuse those in it")
	return c
}

// ablations returns the named ablations; without names, all.
func ablations(names []string) ([]decision.Ablation, error) {
	all := decision.Ablations()
	if len(names) == 0 {
		return all, nil
	}
	var out []decision.Ablation
	for _, name := range names {
		i := slices.IndexFunc(all, func(a decision.Ablation) bool { return a.Name == name })
		if i < 0 {
			var known []string
			for _, a := range all {
				known = append(known, a.Name)
			}
			return nil, fmt.Errorf("unknown ablation %q; expected one of %q", name, known)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// ablate measures each ablation on each set and prints a table. Ablations that share
// their statistics are measured by one training. Rows in the file are reused.
func ablate(ctx context.Context, e *ort.Engine, sets []string, all []decision.Ablation, o trainer.Options, file string, out, log io.Writer) error {
	program, err := fingerprint()
	if err != nil {
		return err
	}
	done, err := read[ablated](file)
	if err != nil {
		return err
	}
	table := make([][]ablated, len(all)) // ablations × sets
	for _, folder := range sets {
		if folder, err = filepath.Abs(folder); err != nil {
			return err
		}
		for i, a := range all {
			row := ablated{Program: program, Ablation: a.Name, Set: filepath.Base(folder), Folder: folder, Level: o.Level, Side: o.ImageSize, Seed: o.Seed}
			k := slices.IndexFunc(done, row.same)
			if k < 0 {
				rows, err := measureAblations(ctx, e, folder, leaving(o, statisticsOf(a)), row)
				if err != nil {
					return fmt.Errorf("%s: %w", a.Name, err)
				}
				for _, r := range rows {
					fmt.Fprintf(log, "%s, %s: AUROC %.3f\n", r.Ablation, r.Set, r.AUROC)
					if err := appendTo(file, r); err != nil {
						return err
					}
				}
				done = append(done, rows...)
				if k = slices.IndexFunc(done, row.same); k < 0 {
					return fmt.Errorf("%s: the training did not measure it", a.Name)
				}
			}
			table[i] = append(table[i], done[k])
		}
	}
	return writeAblations(out, table)
}

// statisticsOf returns the ablation to train with for measuring a: the first that shares
// its statistics.
func statisticsOf(a decision.Ablation) decision.Ablation {
	for _, b := range decision.Ablations() {
		if b.SharesStatistics(a) {
			return b
		}
	}
	return a
}

// measureAblations trains once and returns a row for each ablation that shares the
// statistics. The rows are copies of like with other names and results.
func measureAblations(ctx context.Context, e *ort.Engine, folder string, o trainer.Options, like ablated) ([]ablated, error) {
	s, err := evaluation.Open(folder)
	if err != nil {
		return nil, err
	}
	var joins []*decision.Ablated
	o.Ablated = func(all []*decision.Ablated) { joins = all }
	l, err := train(ctx, e, filepath.Join(folder, evaluation.TrainFolder), o, true)
	if err != nil {
		return nil, err
	}
	members := map[string][]float64{}
	err = judge(e, l.model, func(d *inference.Detector) error {
		if err := s.Check(ctx, l.model.Metadata.Preprocessing, e.Threads()); err != nil {
			return err
		}
		files := s.Good
		for _, defect := range s.Defects {
			files = slices.Concat(files, defect.Files)
		}
		members, err = memberScores(ctx, d, files, e.Threads())
		return err
	})
	if err != nil {
		return nil, err
	}
	var rows []ablated
	for _, j := range joins {
		r := evaluation.EvaluateScores(s, j.Threshold, func(file string) float64 { return j.Score(members[file]) })
		like.Ablation, like.AUROC, like.Hits, like.FalseAlarms = j.Name, r.Mean.AUROC, r.Mean.Hits, r.FalseAlarms
		rows = append(rows, like)
	}
	return rows, nil
}

// memberScores returns the member scores of each file.
func memberScores(ctx context.Context, d *inference.Detector, files []string, threads int) (map[string][]float64, error) {
	out, mu := map[string][]float64{}, sync.Mutex{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(threads, 1))
	for _, file := range files {
		group.Go(func() error {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			pixels, err := imagefile.Prepare(data, d.Size(), d.ImageOptions(imagefile.DefaultLimits()))
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			members, _, _, err := d.Members(ctx, pixels)
			mu.Lock()
			defer mu.Unlock()
			out[file] = members
			return err
		})
	}
	return out, group.Wait()
}

// writeAblations prints the AUROC of each ablation on each set, and the means over the
// sets.
func writeAblations(out io.Writer, table [][]ablated) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "AUROC")
	for _, r := range table[0] {
		fmt.Fprint(t, "\t", r.Set)
	}
	fmt.Fprintln(t, "\tmean\tfound\tfalse alarms")
	for _, rows := range table {
		fmt.Fprint(t, rows[0].Ablation)
		var auroc, hits, alarms float64
		for _, r := range rows {
			fmt.Fprintf(t, "\t%.3f", r.AUROC)
			auroc, hits, alarms = auroc+r.AUROC, hits+r.Hits, alarms+r.FalseAlarms
		}
		n := float64(len(rows))
		fmt.Fprintf(t, "\t%.3f\t%.3f\t%.3f\n", auroc/n, hits/n, alarms/n)
	}
	return t.Flush()
}

// leaving returns the options with an ablation.
func leaving(o trainer.Options, a decision.Ablation) trainer.Options {
	o.Without = a
	return o
}
