package main

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
)

func trainCommand() *cobra.Command {
	var (
		engine  engineFlags
		options = trainer.Options{Limits: dataset.DefaultLimits()}
		out     outputFlags
		quiet   bool
		from    string

		preparation preparationFlags
	)
	c := &cobra.Command{
		Use:   "train ZIP|FOLDER",
		Short: "Train a model on normal images",
		Long: "Trains on the images in a zip or a folder, all of them normal, and writes the model when it is done. An interrupt\n" +
			"(Ctrl-C) stops the training early and writes the model so far; a second interrupt writes nothing. While the\n" +
			"images are read there is no model yet, and the first interrupt writes nothing.",
		SuggestFor:  []string{"fit", "learn"},
		Annotations: map[string]string{handlesInterrupts: "true"},
		Args:        cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if from != "" {
				base, _, err := readModel(from, "")
				if err != nil {
					return err
				}
				options.Base = base
			}
			options, level, err := settle(c, options, &preparation)
			if err != nil {
				return err
			}
			write, err := modelWriter(out.flag, out.path)
			if err != nil {
				return err
			}
			if err := out.check(); err != nil {
				return err
			}
			e, err := engine.open()
			if err != nil {
				return err
			}
			src, closer, err := openSource(args[0], options.Limits)
			if err != nil {
				return err
			}
			defer closer()
			stderr := c.ErrOrStderr()
			report := newTrainingReport(stderr)
			defer report.end()
			if !quiet {
				fmt.Fprintf(stderr, "level %d: %d epochs, batch %d, learning rate %g, %v pixels\n",
					level.Number, level.Epochs, level.BatchSize, level.LearningRate, options.Input)
			}
			// Learned is set when Train returns a model if it is stopped: it has begun to
			// learn what is normal, or it has taken a step.
			var learned atomic.Bool
			options.Stage = func(s trainer.Stage) {
				if s == trainer.StageExtractingFeatures {
					learned.Store(true)
				}
				if !quiet {
					report.stage(s)
				}
			}
			options.Progress = func(p trainer.Progress) {
				learned.Store(true)
				if !quiet {
					report.progress(p)
				}
			}
			ctx, stop, done := interruptible(c.Context(), stderr, &learned, interruptGrace, func() { fail(errInterrupted) })
			defer done()
			options.Stop = stop
			started := time.Now()
			m, err := trainer.Train(ctx, e, src, options)
			switch {
			case err != nil && (ctx.Err() != nil || errors.Is(err, trainer.ErrStopped)) && learned.Load():
				return errInterrupted
			case err != nil && (ctx.Err() != nil || errors.Is(err, trainer.ErrStopped)):
				return errNothingLearned
			case err != nil:
				return err
			}
			report.end()
			if err := writeModel(out.path, m, write); err != nil {
				return err
			}
			printTraining(stderr, out.path, m, time.Since(started))
			return nil
		},
	}
	f := c.Flags()
	engine.add(c)
	addTrainingFlags(c, &options, &preparation)
	out.add(c, "out", "model.zip", "model to write; its extension selects the format: .zip, .pt or .onnx")
	f.StringVar(&from, "from", "", "model to continue from, at its image size, instead of random weights")
	f.StringVar(&options.TempDir, "temp-dir", "", "folder for prepared images that do not fit in --dataset-memory (default: the system's)")
	f.Int64Var(&options.Limits.MemoryBytes, "dataset-memory", options.Limits.MemoryBytes, "memory for prepared images, in bytes; the others are on disk, in --temp-dir")
	f.Int64Var(&options.Limits.PreparedBytes, "max-dataset", options.Limits.PreparedBytes, "upper bound of all prepared images, in memory and on disk, in bytes")
	f.BoolVar(&quiet, "quiet", false, "print no progress")
	return c
}

// printTraining prints how a training ended.
func printTraining(w io.Writer, out string, m *models.Model, took time.Duration) {
	t := m.Metadata.Training
	printRemarks(w, t.SkippedFiles, t.Warnings)
	if t.Ended != models.EndedComplete {
		fmt.Fprintf(w, "ended early (%s): %d of %d steps, %.1f of %d epochs\n", t.Ended, t.Steps, t.PlannedSteps, t.EpochsDone(), t.Epochs)
	}
	measure, threshold := m.Metadata.Measure()
	fmt.Fprintf(w, "%s: trained on %d images in %.1f s, mean squared error %.6f, threshold %.6f (%s)\n",
		quoted(out), t.Images, took.Seconds(), m.Metadata.MeanError, threshold, measure)
}
