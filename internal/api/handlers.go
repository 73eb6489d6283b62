package api

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
)

func (s *Server) health(c *fiber.Ctx) error {
	provider, reason := s.engine.Provider()
	_, version := s.engine.Library()
	return c.JSON(fiber.Map{
		"status":                    "healthy",
		"service":                   ServiceName,
		"execution_provider":        provider,
		"execution_provider_reason": reason,
		"onnxruntime":               version,
		"threads":                   s.engine.Threads(),
		"loaded_models":             s.cache.Stats().Models,
	})
}

// train answers POST /train: the zip of the trained model.
func (s *Server) train(c *fiber.Ctx) error {
	began := arrival(c)
	if s.draining.Load() {
		return errShuttingDown
	}
	f, err := s.readForm(c, map[string]field{
		"zipFile":     {limit: s.options.BodyBytes, spool: true},
		"level":       {limit: maxFieldBytes},
		"image_size":  {limit: maxFieldBytes},
		"max_seconds": {limit: maxFieldBytes},
		"baseModel":   {limit: s.options.Models.MaxBytes},

		"false_alarm_rate": {limit: maxFieldBytes},
	})
	if err != nil {
		return err
	}
	defer f.Close()
	laps := s.metrics.laps(workTrain, began)
	laps.done(stageReceive)
	file, ok := f.files["zipFile"]
	if !ok {
		return errNoZip
	}
	o := trainer.Options{Seed: s.options.Seed, Limits: s.options.Dataset, Images: s.options.Images, TempDir: s.options.TempDir,
		Threads: s.options.TrainingThreads, Niceness: s.options.TrainingNiceness, Progress: s.metrics.progress}
	if o.Level, err = number(f.text("level"), trainer.DefaultLevel, trainer.ErrLevel); err != nil {
		return err
	}
	if o.ImageSize, err = number(f.text("image_size"), 0, trainer.ErrImageSize); err != nil {
		return err
	}
	maxTime, err := duration(f.text("max_seconds"))
	if err != nil {
		return err
	}
	if text := f.text("false_alarm_rate"); text != "" {
		if o.FalseAlarmRate, err = strconv.ParseFloat(text, 64); err != nil || o.FalseAlarmRate == 0 {
			return fmt.Errorf("%w: %.40q, expected a number between 0 and 1", trainer.ErrFalseAlarmRate, text)
		}
	}
	if base := f.memory["baseModel"]; len(base) > 0 {
		if o.Base, err = models.Read(base, s.options.Models); err != nil {
			return err
		}
	}
	if o, _, err = o.Settle(); err != nil {
		return err
	}
	if largest := s.options.Models.MaxSide; o.ImageSize > largest {
		return fmt.Errorf("%w: %d, this service trains at %d at most", trainer.ErrImageSize, o.ImageSize, largest)
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	src, err := trainer.OpenZip(file, info.Size(), o.Limits)
	if err != nil {
		return err
	}
	ctx, done := s.working(c)
	defer done()
	if err := s.enterTraining(ctx, began, maxTime); err != nil {
		return err
	}
	defer s.training.leave()
	laps.done(stageQueue)
	started := time.Now()
	if maxTime > 0 {
		// The caller's clock began with the request: its upload and its wait count.
		if o.MaxTime = maxTime - started.Sub(began); o.MaxTime <= 0 {
			return trainer.ErrTooLittleTime
		}
	}
	m, err := trainer.Train(ctx, s.engine, src, o)
	if err != nil {
		s.metrics.trained("failed")
		return err
	}
	s.metrics.trained(string(m.Metadata.Training.Ended))
	var bundle bytes.Buffer
	if err := exporter.WriteBundle(&bundle, m); err != nil {
		return err
	}
	s.log.Info("trained", slog.String("id", requestID(c)), slog.Int("images", m.Metadata.Training.Images),
		slog.Int("skipped", m.Metadata.Training.Skipped), slog.Int("level", o.Level), slog.Int("image_size", o.ImageSize),
		slog.Any("warnings", m.Metadata.Training.Warnings), slog.Any("skipped_files", m.Metadata.Training.SkippedFiles),
		slog.Float64("threshold", m.Metadata.Threshold), slog.Duration("took", time.Since(started)))
	summary := m.Metadata.Training
	c.Set(headerTrainingEnded, string(summary.Ended))
	c.Set(headerTrainingEpochs, fmt.Sprintf("%.2f/%d", summary.EpochsDone(), summary.Epochs))
	c.Attachment(exporter.BundleFile)
	c.Set(fiber.HeaderContentType, "application/zip")
	return c.Send(bundle.Bytes())
}

// The headers of /train's answer that say what the training came to, for those
// who will not look into the zip: why it ended, and how many of its epochs it
// took.
const (
	headerTrainingEnded  = "X-Training-Ended"
	headerTrainingEpochs = "X-Training-Epochs"
)

// enterTraining waits for a training's turn, no longer than the caller has time.
func (s *Server) enterTraining(ctx context.Context, began time.Time, maxTime time.Duration) error {
	if maxTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, began.Add(maxTime), errBusy)
		defer cancel()
	}
	return s.training.enter(ctx)
}

// longestTraining bounds max_seconds, which would overflow a Duration.
const longestTraining = 30 * 24 * time.Hour

// duration reads a number of seconds from a text field; an empty one means no
// limit.
func duration(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || !(seconds > 0 && seconds <= longestTraining.Seconds()) {
		return 0, badRequest(fmt.Sprintf("The field max_seconds must be a number above 0 and at most %.0f, got %.40q", longestTraining.Seconds(), text))
	}
	// Less than a nanosecond is still a limit, and 0 would be none.
	return max(time.Duration(seconds*float64(time.Second)), 1), nil
}

// number reads a whole number from a text field; an empty one means otherwise.
func number(text string, otherwise int, wrong error) (int, error) {
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n == 0 { // 0 would pass for "not given" from here on
		return 0, fmt.Errorf("%w, got %.40q", wrong, text)
	}
	return n, nil
}
