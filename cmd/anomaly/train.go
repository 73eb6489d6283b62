package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func trainCommand() *cobra.Command {
	var (
		engine  engineFlags
		options = trainer.Options{Limits: dataset.DefaultLimits()}
		out     string
		force   bool
		quiet   bool
		from    string
	)
	c := &cobra.Command{
		Use:   "train normal.zip|FOLDER",
		Short: "Train a model on normal images",
		Long: "Learns what normal images look like and writes a model. An interrupt (Ctrl-C) ends the training early,\n" +
			"with the model so far; a second one ends it with nothing written.",
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
					options.ImageSize = 0 // the model's
				}
			}
			options, level, err := settle(c, options)
			if err != nil {
				return err
			}
			if err := mayWrite("--out", out, force); err != nil {
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
				options.Progress = progress(stderr)
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
			if err := files.WriteAtomic(out, func(w io.Writer) error { return exporter.WriteBundle(w, m) }); err != nil {
				return err
			}
			for _, s := range m.Metadata.Training.SkippedFiles {
				fmt.Fprintf(stderr, "skipped %s: %s\n", s.Name, s.Reason)
			}
			for _, w := range m.Metadata.Training.Warnings {
				fmt.Fprintln(stderr, "warning:", w)
			}
			if s := m.Metadata.Training; s.Ended != models.EndedComplete {
				fmt.Fprintf(stderr, "ended early (%s): %d of %d steps, %.1f of %d epochs\n",
					s.Ended, s.Steps, s.PlannedSteps, s.EpochsDone(), s.Epochs)
			}
			measure, threshold := m.Metadata.Measure()
			fmt.Fprintf(stderr, "%s: trained on %d images in %.1f s, mean error %.6f, threshold %.6f (%s)\n",
				out, m.Metadata.Training.Images, time.Since(started).Seconds(), m.Metadata.MeanError, threshold, measure)
			return nil
		},
	}
	f := c.Flags()
	engine.add(c)
	f.IntVar(&options.Level, "level", trainer.DefaultLevel, "1 (quickest) to 5 (most thorough)")
	f.IntVar(&options.ImageSize, "image-size", trainer.DefaultImageSize, "side images are resized to, in pixels, a multiple of 16")
	f.StringVar(&out, "out", "model.zip", "the model to write")
	f.Int64Var(&options.Seed, "seed", 0, "the same seed gives the same model")
	f.Float64Var(&options.FalseAlarmRate, "false-alarm-rate", trainer.DefaultFalseAlarmRate, "share of normal images that may be called anomalous")
	f.DurationVar(&options.MaxTime, "max-time", 0, "end in this time, 10m say, with as many of the level's steps as fit (default: as long as the level takes)")
	f.StringVar(&options.TempDir, "temp-dir", "", "folder for prepared images that do not fit in --dataset-memory (default: the system's)")
	f.Int64Var(&options.Limits.MemoryBytes, "dataset-memory", options.Limits.MemoryBytes, "memory for prepared images, in bytes; what is beyond lies on disk")
	f.Int64Var(&options.Limits.PreparedBytes, "max-dataset", options.Limits.PreparedBytes, "most the prepared images may take, on disk and in memory, in bytes")
	f.StringVar(&from, "from", "", "a model to go on from, with its image size, instead of random weights")
	f.BoolVar(&force, "force", false, "replace an existing file")
	f.BoolVar(&quiet, "quiet", false, "no progress")
	return c
}

// stoppable lets the first interrupt end a training early, with the model so
// far, and the second end it with nothing.
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

// settle checks the options before anything is opened. A level or size of 0
// that was typed is a mistake, not the default.
func settle(c *cobra.Command, o trainer.Options) (trainer.Options, trainer.Level, error) {
	if c.Flags().Changed("level") && o.Level == 0 {
		_, err := trainer.LevelOf(0)
		return o, trainer.Level{}, err
	}
	if c.Flags().Changed("image-size") && o.ImageSize == 0 {
		return o, trainer.Level{}, fmt.Errorf("%w: 0, expected a multiple of %d from %d to %d",
			trainer.ErrImageSize, models.DefaultArchitecture().Stride(), trainer.MinImageSize, trainer.MaxImageSize)
	}
	if o.FalseAlarmRate == 0 {
		return o, trainer.Level{}, fmt.Errorf("%w: 0, expected a number between 0 and 1", trainer.ErrFalseAlarmRate)
	}
	return o.Settle()
}

func openSource(path string, lim dataset.Limits) (*dataset.Source, func(), error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if info.IsDir() {
		src, err := dataset.OpenFolder(path, lim)
		return src, func() {}, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	src, err := dataset.OpenZip(file, info.Size(), lim)
	if err != nil {
		file.Close()
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return src, func() { file.Close() }, nil
}

// mayWrite returns an error when the file that a flag names exists and is not to
// be replaced, or is a folder.
func mayWrite(flag, path string, force bool) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("%s is the folder %s; name a file in it", flag, path)
	case err == nil && !force:
		return fmt.Errorf("%s exists; give --force to replace it", path)
	}
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress shows a bar on a terminal, and a line for each epoch elsewhere.
func progress(w io.Writer) func(trainer.Progress) {
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
			bar = progressbar.NewOptions(p.Steps, progressbar.OptionSetWriter(w), progressbar.OptionSetPredictTime(true),
				progressbar.OptionSetElapsedTime(true), progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish())
		}
		bar.Describe(fmt.Sprintf("epoch %d/%d loss %.6f", p.Epoch, p.Epochs, p.Loss))
		_ = bar.Set(p.Step)
	}
}
