package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/decision"
	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
)

// ablated is the result of one ablation on one data set.
type ablated struct {
	Program  string  `json:"program"`
	Ablation string  `json:"ablation"`
	Set      string  `json:"set"`
	Folder   string  `json:"folder"`
	Level    int     `json:"level"`
	Side     int     `json:"image_size"`
	Seed     int64   `json:"seed"`
	AUROC    float64 `json:"auroc"`
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

func ablate(ctx context.Context, e *ort.Engine, sets []string, all []decision.Ablation, o trainer.Options, file string, out, log io.Writer) error {
	program, err := fingerprint()
	if err != nil {
		return err
	}
	done, err := read[ablated](file)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "AUROC")
	for _, set := range sets {
		fmt.Fprint(t, "\t", filepath.Base(set))
	}
	fmt.Fprintln(t)
	for _, a := range all {
		fmt.Fprint(t, a.Name)
		for _, folder := range sets {
			if folder, err = filepath.Abs(folder); err != nil {
				return err
			}
			row := ablated{Program: program, Ablation: a.Name, Set: filepath.Base(folder), Folder: folder, Level: o.Level, Side: o.ImageSize, Seed: o.Seed}
			i := slices.IndexFunc(done, func(d ablated) bool { d.AUROC = 0; return d == row })
			if i >= 0 {
				row = done[i]
			} else {
				if row.AUROC, err = without(ctx, e, folder, leaving(o, a)); err != nil {
					return fmt.Errorf("%s: %w", a.Name, err)
				}
				fmt.Fprintf(log, "%s, %s: AUROC %.3f\n", a.Name, row.Set, row.AUROC)
				if err := appendTo(file, row); err != nil {
					return err
				}
			}
			fmt.Fprintf(t, "\t%.3f", row.AUROC)
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// without returns the mean AUROC over the kinds of defects.
func without(ctx context.Context, e *ort.Engine, folder string, o trainer.Options) (float64, error) {
	s, err := evaluation.Open(folder)
	if err != nil {
		return 0, err
	}
	for i := range s.Defects {
		s.Defects[i].Masks = nil // pixel metrics are slow and not needed
	}
	l, err := train(ctx, e, filepath.Join(folder, evaluation.TrainFolder), o, true)
	if err != nil {
		return 0, err
	}
	auroc := 0.0
	err = judge(e, l.model, func(d *inference.Detector) error {
		r, err := evaluation.Evaluate(ctx, d, s, e.Threads())
		if err == nil {
			auroc = r.Mean.AUROC
		}
		return err
	})
	return auroc, err
}

// leaving returns the options with an ablation.
func leaving(o trainer.Options, a decision.Ablation) trainer.Options {
	o.Without = a
	return o
}
