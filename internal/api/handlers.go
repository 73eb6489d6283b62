package api

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/dataset"
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

		"calibrationFile":  {limit: s.options.BodyBytes, spool: true},
		"false_alarm_rate": {limit: maxFieldBytes},
	})
	if err != nil {
		return err
	}
	defer f.Close()
	laps := s.metrics.laps(workTrain, began)
	laps.done(stageReceive)
	if f.files["zipFile"] == nil {
		return errNoZip
	}
	o := s.trainingOptions()
	o.Progress = s.metrics.progress
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
	if o.FalseAlarmRate, err = falseAlarmRate(f.text("false_alarm_rate")); err != nil {
		return err
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
	src, err := f.source("zipFile", o.Limits)
	if err != nil {
		return err
	}
	var normals *dataset.Source
	if f.files["calibrationFile"] != nil {
		if normals, err = f.source("calibrationFile", o.Limits); err != nil {
			return inCalibration(err)
		}
	}
	ctx, done := s.working(c)
	defer done()
	if err := s.enterTraining(ctx, began, maxTime); err != nil {
		return err
	}
	defer s.training.leave()
	laps.done(stageQueue)
	started := time.Now()
	held, err := s.hold(ctx, normals, o)
	if err != nil {
		return err
	}
	defer held.Close()
	var end time.Time
	if maxTime > 0 {
		// The caller's clock began with the request: its upload and its wait count.
		end = began.Add(maxTime)
		if o.MaxTime = held.training(time.Until(end)); o.MaxTime <= 0 {
			return trainer.ErrTooLittleTime
		}
	}
	m, err := trainer.Train(ctx, s.engine, src, o)
	if err != nil {
		s.metrics.trained("failed")
		return err
	}
	s.metrics.trained(string(m.Metadata.Training.Ended))
	if m, err = s.calibrateHeld(ctx, c, m, held, o, end); err != nil {
		return err
	}
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
	return sendBundle(c, bundle.Bytes())
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
