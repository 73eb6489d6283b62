package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
)

func trainCommand() *cobra.Command {
	var (
		engine  engineFlags
		options = trainer.Options{Limits: dataset.DefaultLimits()}
		out     outputFlags
		quiet   bool
		from    string
	)
	c := &cobra.Command{
		Use:   "train ZIP|FOLDER",
		Short: "Train a model on normal images",
		Long: "Trains on the images in a zip or a folder, all of them normal, and writes the model when it is done. An interrupt\n" +
			"(Ctrl-C) stops the training early and writes the model so far; a second interrupt writes nothing.",
		Annotations: map[string]string{handlesInterrupts: "true"},
		Args:        cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if from != "" {
				base, _, err := readModel(from, "")
				if err != nil {
					return err
				}
				options.Base = base
				if !c.Flags().Changed("image-size") {
					options.ImageSize = 0 // the base model's
				}
			}
			options, level, err := settle(c, options)
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
			if !quiet {
				fmt.Fprintf(stderr, "level %d: %d epochs, batch %d, learning rate %g, %d×%d pixels\n",
					level.Number, level.Epochs, level.BatchSize, level.LearningRate, options.ImageSize, options.ImageSize)
				options.Progress = trainingProgress(stderr)
			}
			ctx, stop, done := stoppable(c.Context(), stderr)
			defer done()
			options.Stop = stop
			started := time.Now()
			m, err := trainer.Train(ctx, e, src, options)
			if errors.Is(err, context.Canceled) || errors.Is(err, trainer.ErrStopped) {
				return errors.New("interrupted; nothing was written")
			}
			if err != nil {
				return err
			}
			if err := writeBundle(out.path, m); err != nil {
				return err
			}
			printTraining(stderr, out.path, m, time.Since(started))
			return nil
		},
	}
	f := c.Flags()
	engine.add(c)
	addTrainingFlags(c, &options)
	out.add(c, "out", "model.zip", "model to write, a zip")
	f.StringVar(&from, "from", "", "model to continue from, at its image size, instead of random weights")
	f.StringVar(&options.TempDir, "temp-dir", "", "folder for prepared images that do not fit in --dataset-memory (default: the system's)")
	f.Int64Var(&options.Limits.MemoryBytes, "dataset-memory", options.Limits.MemoryBytes, "memory for prepared images, in bytes; the others are on disk, in --temp-dir")
	f.Int64Var(&options.Limits.PreparedBytes, "max-dataset", options.Limits.PreparedBytes, "upper bound of all prepared images, in memory and on disk, in bytes")
	f.BoolVar(&quiet, "quiet", false, "print no progress")
	return c
}

// stoppable handles interrupts of a training: the first closes stop, which ends it
// early with a model, and the second ends ctx, which ends it without one.
func stoppable(parent context.Context, w io.Writer) (ctx context.Context, stop <-chan struct{}, done func()) {
	ctx, cancel := context.WithCancel(parent)
	stopped, finished := make(chan struct{}), make(chan struct{})
	interrupts := make(chan os.Signal, 2)
	signal.Notify(interrupts, os.Interrupt)
	go func() {
		select {
		case <-interrupts:
			fmt.Fprintln(w, "\nstopping: the model so far will be written; interrupt again to write nothing")
			close(stopped)
		case <-finished:
			return
		}
		select {
		case <-interrupts:
			cancel()
		case <-finished:
		}
	}()
	return ctx, stopped, func() {
		signal.Stop(interrupts)
		close(finished)
		cancel()
	}
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
		out, t.Images, took.Seconds(), m.Metadata.MeanError, threshold, measure)
}

// trainingProgress draws a bar on a terminal, and prints a line per epoch elsewhere.
func trainingProgress(w io.Writer) func(trainer.Progress) {
	if !isTerminal(w) {
		return func(p trainer.Progress) {
			if p.Step%(p.Steps/p.Epochs) == 0 {
				fmt.Fprintf(w, "epoch %d/%d loss %.6f, %s left\n", p.Epoch, p.Epochs, p.Loss, p.Remaining.Round(time.Second))
			}
		}
	}
	var bar *progressbar.ProgressBar
	return func(p trainer.Progress) {
		if bar == nil {
			bar = progressBar(w, p.Steps)
		}
		bar.Describe(fmt.Sprintf("epoch %d/%d loss %.6f", p.Epoch, p.Epochs, p.Loss))
		_ = bar.Set(p.Step)
	}
}
