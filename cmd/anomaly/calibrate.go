package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
)

func calibrateCommand() *cobra.Command {
	var (
		engine  engineFlags
		options = trainer.Options{Limits: dataset.DefaultLimits()}
		out     outputFlags
		check   bool
		asJSON  bool
	)
	c := &cobra.Command{
		Use:   "calibrate MODEL IMAGE|FOLDER|ZIP...",
		Short: "Set a new threshold from normal images that the model was not trained on",
		Long: "Scores normal images and sets the model's threshold from their scores, without training. Use it when images\n" +
			"change, for instance with the camera or the light. Reports how far the scores are from those of the model's\n" +
			"previous calibration, and with --out writes the calibrated model. Give it 8 images or more, better 20\n" +
			"or more, without defects. Images that the model was trained on make the threshold too low.",
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkFalseAlarmRate(c, options); err != nil {
				return err
			}
			var write func(io.Writer, *models.Model) error
			if c.Flags().Changed(out.flag) {
				var err error
				if write, err = modelWriter(out.flag, out.path); err != nil {
					return err
				}
			}
			if err := out.check(); err != nil {
				return err
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
			calibrated, r, err := recalibrate(c.Context(), e, m, src, options)
			if errors.Is(err, context.Canceled) {
				return errInterrupted
			}
			if err != nil {
				return err
			}
			printRemarks(c.ErrOrStderr(), r.SkippedFiles, r.Warnings)
			if write != nil {
				if err := writeModel(out.path, calibrated, write); err != nil {
					return err
				}
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), r)
			}
			return printRecalibration(c.OutOrStdout(), out.path, r)
		},
	}
	f := c.Flags()
	engine.add(c)
	out.add(c, "out", "", "calibrated model to write; its extension selects the format: .zip, .pt or .onnx (default: none, only a report)")
	f.BoolVar(&check, "check", false, "only report how far the scores are from those of the model's calibration; excludes --out")
	addFalseAlarmRate(c, &options, 0, " (default: the model's)")
	f.Int64Var(&options.Seed, "seed", 0, "random seed of the order in which images are scored")
	f.StringVar(&options.TempDir, "temp-dir", "", "folder for prepared images that do not fit in memory (default: the system's)")
	addJSON(c, &asJSON)
	c.MarkFlagsMutuallyExclusive("out", "check")
	return c
}

// recalibrate calibrates a model on the images of a source.
func recalibrate(ctx context.Context, e *ort.Engine, m *models.Model, src *dataset.Source, o trainer.Options) (*models.Model, *trainer.Recalibration, error) {
	o = o.ForModel(m)
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
		written = "written to " + quoted(out)
	}
	text := fmt.Sprintf("%d normal images, %d skipped\n", r.Images, r.Skipped) +
		fmt.Sprintf("threshold before: %.6f (%s), exceeded by %s of them\n", r.Before, r.Measure, r.AboveBefore) +
		fmt.Sprintf("threshold now:    %.6f, for %.3g %% false alarms; %s\n", r.After, 100*r.FalseAlarmRate, written)
	switch {
	case r.Shift == nil:
		text += "the model does not hold the scores of its calibration, so these cannot be compared with them\n"
	case r.Shift.Significant():
		text += "their scores differ: they are " + r.Shift.String() + "\n"
	default:
		text += "their scores do not differ significantly: they are " + r.Shift.String() + "\n"
	}
	_, err := io.WriteString(w, text)
	return err
}

// minShiftImages is the number of images below which a batch is not compared with
// the model's calibration.
const minShiftImages = 20

// shiftWarning returns a sentence that reports that the scores of a batch differ
// from those of the model's calibration, and how to calibrate again. It returns ""
// when they do not differ significantly, when there are fewer than minShiftImages,
// and when the metadata does not hold the scores of the calibration.
func shiftWarning(meta *models.Metadata, scores []float64) string {
	ref, ok := calibration.ReferenceOf(meta.Decision)
	if !ok || len(scores) < minShiftImages {
		return ""
	}
	s := ref.Compare(scores)
	if !s.Significant() {
		return ""
	}
	return fmt.Sprintf("The scores of these %d images are %s: if most of them are normal, expect another false alarm rate than the model's; "+
		"calibrate it on normal images: anomaly calibrate MODEL NORMAL_IMAGES --out calibrated.zip", s.Images, s)
}

// verdictShiftWarning is shiftWarning for verdicts that were made with the metadata.
func verdictShiftWarning(meta *models.Metadata, results []result) string {
	var scores []float64
	for _, r := range results {
		if r.Verdict != nil {
			scores = append(scores, r.ReconstructionError)
		}
	}
	return shiftWarning(meta, scores)
}
