package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
)

func calibrateCommand() *cobra.Command {
	var (
		engine  engineFlags
		options = trainer.Options{Limits: dataset.DefaultLimits()}
		out     string
		check   bool
		asJSON  bool
		force   bool
	)
	c := &cobra.Command{
		Use:   "calibrate MODEL IMAGE|FOLDER|normal.zip...",
		Short: "Give a model a new threshold, from normal images that it has not learnt from",
		Long: "Measures normal images that are taken as later ones will be, by another camera or under another light for instance,\n" +
			"and draws the model's threshold anew from them, without training. Says how far they are from the images that the\n" +
			"threshold was drawn from before, and with --out writes the calibrated model as a zip. The images that the model was\n" +
			"trained on are not fit for it: it knows them too well.",
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("false-alarm-rate") && options.FalseAlarmRate == 0 {
				return fmt.Errorf("%w: 0, expected a number between 0 and 1", trainer.ErrFalseAlarmRate)
			}
			if out != "" {
				if err := mayWrite("--out", out, force); err != nil {
					return err
				}
			}
			m, _, err := readModel(args[0], "")
			if err != nil {
				return err
			}
			src, closer, err := openSources(args[1:], options.Limits)
			if err != nil {
				return err
			}
			defer closer()
			e, err := engine.open()
			if err != nil {
				return err
			}
			again, r, err := recalibrated(c.Context(), e, m, src, options)
			if errors.Is(err, context.Canceled) {
				return errors.New("interrupted; nothing was written")
			}
			if err != nil {
				return err
			}
			stderr := c.ErrOrStderr()
			for _, s := range r.SkippedFiles {
				fmt.Fprintf(stderr, "skipped %s: %s\n", s.Name, s.Reason)
			}
			for _, w := range r.Warnings {
				fmt.Fprintln(stderr, "warning:", w)
			}
			if out != "" {
				if err := files.WriteAtomic(out, func(w io.Writer) error { return exporter.WriteBundle(w, again) }); err != nil {
					return err
				}
			}
			if asJSON {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(r)
			}
			return printRecalibration(c.OutOrStdout(), out, r)
		},
	}
	f := c.Flags()
	engine.add(c)
	f.StringVar(&out, "out", "", "the calibrated model to write, a zip as train writes it (default: none, only the report)")
	f.BoolVar(&check, "check", false, "write nothing: only say how far the images are from those of the model's calibration")
	f.Float64Var(&options.FalseAlarmRate, "false-alarm-rate", 0, "share of normal images that may be called anomalous (default: what the model promises)")
	f.Int64Var(&options.Seed, "seed", 0, "the order in which images are measured")
	f.StringVar(&options.TempDir, "temp-dir", "", "folder for prepared images that do not fit in memory (default: the system's)")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	f.BoolVar(&force, "force", false, "replace an existing file")
	c.MarkFlagsMutuallyExclusive("out", "check")
	return c
}

// openSources opens folders, zips and single images as one source.
func openSources(paths []string, lim dataset.Limits) (*dataset.Source, func(), error) {
	var (
		sources []*dataset.Source
		single  []string
		closers []func()
	)
	closeAll := func() {
		for _, c := range closers {
			c()
		}
	}
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && !info.IsDir() && dataset.IsImage(p) {
			single = append(single, p)
			continue
		}
		src, closer, err := openSource(p, lim)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		sources, closers = append(sources, src), append(closers, closer)
	}
	if len(single) > 0 {
		src, err := dataset.OpenFiles(single, lim)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		sources = append(sources, src)
	}
	src, err := dataset.JoinSources(sources, lim)
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	return src, closeAll, nil
}

// recalibrated calibrates a model on the source's images.
func recalibrated(ctx context.Context, e *ort.Engine, m *models.Model, src *dataset.Source, o trainer.Options) (*models.Model, *trainer.Recalibration, error) {
	o.ImageSize = m.ImageSize
	data, err := trainer.LoadCalibrationImages(ctx, e, src, o)
	if err != nil {
		return nil, nil, err
	}
	defer data.Close()
	return trainer.Recalibrate(ctx, e, m, data, o)
}

func printRecalibration(w io.Writer, out string, r *trainer.Recalibration) error {
	written := "nothing was written"
	if out != "" {
		written = "written to " + out
	}
	text := fmt.Sprintf("%d normal images, %d skipped\n", r.Images, r.Skipped) +
		fmt.Sprintf("threshold before: %.6f (%s), above it are %s of them\n", r.Before, r.Measure, r.AboveBefore) +
		fmt.Sprintf("threshold now:    %.6f, for %.3g %% false alarms; %s\n", r.After, 100*r.FalseAlarmRate, written)
	switch {
	case r.Shift == nil:
		text += "the model does not carry the scores of its calibration, so nothing says how far the images are from them\n"
	case r.Shift.Significant():
		text += "they differ: they lie " + r.Shift.String() + "\n"
	default:
		text += "they do not differ for certain: they lie " + r.Shift.String() + "\n"
	}
	_, err := io.WriteString(w, text)
	return err
}

// fewestToCompare is how many images a batch must have before it is told to differ
// from those of the calibration.
const fewestToCompare = 20

// shifted says in a sentence that a batch's scores differ from those of the model's
// calibration, and what to do about it; "" where they do not for certain, or where
// nobody can tell.
func shifted(meta *models.Metadata, scores []float64) string {
	ref, ok := calibration.ReferenceOf(meta.Decision)
	if !ok || len(scores) < fewestToCompare {
		return ""
	}
	s := ref.Compare(scores)
	if !s.Significant() {
		return ""
	}
	return fmt.Sprintf("The scores of these %d images lie %s: if most of them are normal, the model's rate of false alarms does not hold for them; "+
		"calibrate it on normal ones: anomaly calibrate MODEL NORMAL_IMAGES --out calibrated.zip", s.Images, s)
}

// shiftedVerdicts is shifted for verdicts by metadata, or by the model's own where it
// is nil.
func shiftedVerdicts(d *inference.Detector, meta *models.Metadata, results []result) string {
	if meta == nil {
		meta = &d.Model().Metadata
	}
	var scores []float64
	for _, r := range results {
		if r.Verdict != nil {
			scores = append(scores, r.ReconstructionError)
		}
	}
	return shifted(meta, scores)
}
