package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
)

// galleryImages is the number of images in each gallery of a report.
const galleryImages = 10

// evaluationOutput is printed by `evaluate --json`.
type evaluationOutput struct {
	Dataset string `json:"dataset"`
	*evaluation.Result
	// Detectability holds the shares of synthetic anomalies that are found; nil
	// without --report.
	Detectability *models.Detectability `json:"detectability,omitempty"`
	// Seconds is the duration of each stage.
	Seconds map[string]float64 `json:"seconds"`
	// PeakBytes is the peak resident memory of the process.
	PeakBytes int64 `json:"peak_bytes"`
}

func evaluateCommand() *cobra.Command {
	var (
		engine  engineFlags
		options trainer.Options
		model   string
		report  outputFlags
		asJSON  bool

		preparation preparationFlags
	)
	c := &cobra.Command{
		Use:   "evaluate DATASET",
		Short: "Measure how well a model finds the defects of a data set (train/good, test/good, test/<defect>)",
		Long: "Trains on the images in DATASET/train/good, or takes --model, and judges those in test/good and test/<defect>.\n" +
			"Prints for each kind of defect the AUROC with its 95 % interval, the average precision, the best F1, the share\n" +
			"found at 1, 5 and 10 % false alarms, and the share found at the model's own threshold. With masks in\n" +
			"DATASET/ground_truth/<defect> (<image>_mask.png, not black where the defect is) it also prints how well the\n" +
			"anomaly map locates defects: the AUROC of pixels, and the per-region overlap (PRO) up to 30 % false alarms.\n" +
			"With --report it also measures which synthetic anomalies on the normal images are found, by size and contrast.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if model != "" {
				if err := rejectPreparation(c); err != nil {
					return err
				}
			}
			options, _, err := settle(c, options, &preparation)
			if err != nil {
				return err
			}
			if err := report.check(); err != nil {
				return err
			}
			set, err := evaluation.Open(args[0])
			if err != nil {
				return err
			}
			e, err := engine.open()
			if err != nil {
				return err
			}
			preprocessing := models.StandardPreprocessing()
			if model != "" {
				m, _, err := readModel(model, "")
				if err != nil {
					return err
				}
				preprocessing = m.Metadata.Preprocessing
			}
			if err := set.Check(c.Context(), preprocessing, e.Threads()); err != nil {
				return err
			}
			printRemarks(c.ErrOrStderr(), set.Skipped, nil)
			if stderr := c.ErrOrStderr(); isTerminal(stderr) {
				report := newTrainingReport(stderr)
				options.Stage, options.Progress = report.stage, report.progress
				defer report.end()
			}
			r := evaluationOutput{Dataset: args[0], Seconds: map[string]float64{}}
			m, err := evaluatedModel(c.Context(), e, model, args[0], options, r.Seconds, c.ErrOrStderr())
			if err != nil {
				return err
			}
			d, err := inference.NewDetector(e, m, 1)
			if err != nil {
				return err
			}
			defer d.Close()
			began := time.Now()
			if r.Result, err = evaluation.Evaluate(c.Context(), d, set, e.Threads()); err != nil {
				return err
			}
			r.Seconds["detection"] = time.Since(began).Seconds()
			if report.path != "" {
				began = time.Now()
				if r.Detectability, err = evaluation.Detectability(c.Context(), d, set, e.Threads()); err != nil {
					return err
				}
				r.Seconds["painted defects"] = time.Since(began).Seconds()
			}
			r.PeakBytes = peakBytes()
			if report.path != "" {
				if err := writeReport(c.Context(), report.path, d, args[0], r); err != nil {
					return err
				}
			}
			warning := shiftWarning(&d.Model().Metadata, r.normalScores())
			if asJSON {
				if warning != "" {
					fmt.Fprintln(c.ErrOrStderr(), warning)
				}
				return printJSON(c.OutOrStdout(), r)
			}
			if err := r.print(c.OutOrStdout()); err != nil || warning == "" {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), warning)
			return err
		},
	}
	engine.add(c)
	addTrainingFlags(c, &options, &preparation)
	c.Flags().StringVar(&model, "model", "", "model to evaluate instead of training one")
	report.add(c, "report", "", "HTML page to write, with plots and heatmaps")
	addJSON(c, &asJSON)
	return c
}

// evaluatedModel reads the model, or trains one on the data set and prints remarks about
// that.
func evaluatedModel(ctx context.Context, e *ort.Engine, model, dataset string, o trainer.Options, seconds map[string]float64, remarks io.Writer) (*models.Model, error) {
	if model != "" {
		m, _, err := readModel(model, "")
		return m, err
	}
	src, closer, err := openSource(filepath.Join(dataset, evaluation.TrainFolder), o.Limits)
	if err != nil {
		return nil, err
	}
	defer closer()
	began := time.Now()
	m, err := trainer.Train(ctx, e, src, o)
	seconds["training"] = time.Since(began).Seconds()
	if err != nil {
		return nil, err
	}
	printRemarks(remarks, m.Metadata.Training.SkippedFiles, m.Metadata.Training.Warnings)
	return m, nil
}

// writeReport writes the HTML page, with heatmaps of the images that have the highest
// and the lowest scores.
func writeReport(ctx context.Context, path string, d *inference.Detector, dataset string, r evaluationOutput) error {
	highestBad, lowestBad, highestGood := r.Certain(galleryImages)
	page := evaluation.Report{
		Title: "Evaluation on " + filepath.Base(filepath.Clean(dataset)), Result: r.Result,
		Metadata: d.Model().Metadata, Seconds: r.Seconds, Detectability: r.Detectability,
	}
	if d.Model().Reference != nil {
		for _, g := range []struct {
			title  string
			judged []evaluation.Judged
		}{
			{"Defects with the highest scores", highestBad},
			{"Defects with the lowest scores", lowestBad},
			{"Normal images with the highest scores", highestGood},
		} {
			gallery := evaluation.Gallery{Title: g.title}
			for _, j := range g.judged {
				data, err := files.ReadAtMost(j.File, imagefile.DefaultLimits().MaxBytes)
				if err != nil {
					return err
				}
				frames, err := d.Open(data, imagefile.DefaultLimits())
				if err != nil {
					return err
				}
				x, err := d.ExplainFrame(ctx, frames, max(j.Frame-1, 0), nil)
				if err != nil {
					return err
				}
				gallery.Pictures = append(gallery.Pictures, evaluation.Picture{Judged: j, PNG: x.Heatmap})
			}
			page.Galleries = append(page.Galleries, gallery)
		}
	}
	return files.WriteAtomic(path, func(w io.Writer) error { return evaluation.WriteReport(w, page) })
}

// normalScores returns the scores of the normal test images.
func (r evaluationOutput) normalScores() []float64 {
	_, _, good := r.Certain(r.Normal)
	scores := make([]float64, len(good))
	for i, j := range good {
		scores[i] = j.Score
	}
	return scores
}

func (r evaluationOutput) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "DEFECT\tIMAGES\tAUROC\t95 %\tAP\tF1\tHITS 1%\t5%\t10%\tTHRESHOLD\t")
	if r.Masked() {
		fmt.Fprint(t, "PIXEL AUROC\tPRO\t")
	}
	fmt.Fprintln(t)
	for _, f := range r.Rows() {
		fmt.Fprintf(t, "%s\t%d\t%.3f\t%.3f–%.3f\t%.3f\t%.3f\t%.2f\t%.2f\t%.2f\t%.2f\t", quoted(f.Name), f.Images, f.AUROC, f.Low, f.High,
			f.AveragePrecision, f.F1, f.HitsAt1, f.HitsAt5, f.HitsAt10, f.Hits)
		switch {
		case f.Pixels != nil:
			fmt.Fprintf(t, "%.3f\t%.3f\t", f.Pixels.AUROC, f.Pixels.PRO)
		case r.Masked():
			fmt.Fprint(t, "–\t–\t")
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	skipped := ""
	if n := len(r.Skipped); n > 0 {
		skipped = fmt.Sprintf(", %d files skipped", n)
	}
	_, err := fmt.Fprintf(w, "%d normal images%s, %.1f %% above the threshold of %.6g (%s); training %.1f s, detection %.1f s, at most %d MB\n",
		r.Normal, skipped, r.FalseAlarmsPercent(), r.Threshold, r.Measure, r.Seconds["training"], r.Seconds["detection"], r.PeakBytes>>20)
	return err
}

// peakBytes returns the peak resident memory of the process, or 0 if the system does
// not report it.
func peakBytes() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Maxrss * maxrssUnit
}
