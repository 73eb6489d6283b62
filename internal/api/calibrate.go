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

var errNoCalibration = badRequest("Both model file and calibration file are required")

// The headers of an answer with a calibrated model, for those who will not look into
// the zip: how many images the threshold is drawn from, the share of them that was
// above the threshold before, and how far they lie above the calibration before, in
// standard deviations; the last only where the model carries its scores.
const (
	headerCalibrationImages      = "X-Calibration-Images"
	headerCalibrationFalseAlarms = "X-Calibration-False-Alarms"
	headerCalibrationShift       = "X-Calibration-Shift"
)

// calibrationShare is the part of max_seconds that is kept for a calibration behind
// the training: measuring an image takes a small part of what training on it does.
const calibrationShare = 0.1

// calibrate answers POST /calibrate: the zip of the model with a new threshold.
func (s *Server) calibrate(c *fiber.Ctx) error {
	began := arrival(c)
	if s.draining.Load() {
		return errShuttingDown
	}
	f, err := s.readForm(c, map[string]field{
		"modelFile":       {limit: s.options.Models.MaxBytes},
		"calibrationFile": {limit: s.options.BodyBytes, spool: true},

		"false_alarm_rate": {limit: maxFieldBytes},
	})
	if err != nil {
		return err
	}
	defer f.Close()
	laps := s.metrics.laps(workTrain, began)
	laps.done(stageReceive)
	if len(f.memory["modelFile"]) == 0 || f.files["calibrationFile"] == nil {
		return errNoCalibration
	}
	o := s.trainingOptions()
	if o.FalseAlarmRate, err = falseAlarmRate(f.text("false_alarm_rate")); err != nil {
		return err
	}
	m, err := models.Read(f.memory["modelFile"], s.options.Models)
	if err != nil {
		return err
	}
	o.ImageSize = m.ImageSize
	src, err := f.source("calibrationFile", o.Limits)
	if err != nil {
		return err
	}
	ctx, done := s.working(c)
	defer done()
	if err := s.training.enter(ctx); err != nil {
		return err
	}
	defer s.training.leave()
	laps.done(stageQueue)
	started := time.Now()
	data, err := trainer.LoadCalibrationImages(ctx, s.engine, src, o)
	if err != nil {
		return err
	}
	defer data.Close()
	again, r, err := trainer.Recalibrate(ctx, s.engine, m, data, o)
	if err != nil {
		return err
	}
	var bundle bytes.Buffer
	if err := exporter.WriteBundle(&bundle, again); err != nil {
		return err
	}
	s.log.Info("calibrated", slog.String("id", requestID(c)), slog.Int("images", r.Images), slog.Int("skipped", r.Skipped),
		slog.Any("warnings", r.Warnings), slog.Any("skipped_files", r.SkippedFiles),
		slog.Float64("threshold", r.After), slog.Duration("took", time.Since(started)))
	tellCalibration(c, r)
	return sendBundle(c, bundle.Bytes())
}

// tellCalibration sets the headers of an answer with a calibrated model.
func tellCalibration(c *fiber.Ctx, r *trainer.Recalibration) {
	c.Set(headerCalibrationImages, strconv.Itoa(r.Images))
	c.Set(headerCalibrationFalseAlarms, fmt.Sprintf("%.4f", r.AboveBefore.Share))
	if r.Shift != nil {
		c.Set(headerCalibrationShift, fmt.Sprintf("%.2f", r.Shift.Deviations))
	}
}

// sendBundle answers with a model's zip.
func sendBundle(c *fiber.Ctx, bundle []byte) error {
	c.Attachment(exporter.BundleFile)
	c.Set(fiber.HeaderContentType, "application/zip")
	return c.Send(bundle)
}

// source opens a part that is a zip of images and was spooled.
func (f *form) source(name string, lim dataset.Limits) (*dataset.Source, error) {
	file := f.files[name]
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	return dataset.OpenZip(file, info.Size(), lim)
}

// trainingOptions are those of every training here, and of every calibration.
func (s *Server) trainingOptions() trainer.Options {
	return trainer.Options{Seed: s.options.Seed, Limits: s.options.Dataset, Images: s.options.Images, TempDir: s.options.TempDir,
		Threads: s.options.TrainingThreads, Niceness: s.options.TrainingNiceness}
}

// falseAlarmRate reads a rate from a text field; an empty one means 0, the default.
func falseAlarmRate(text string) (float64, error) {
	if text == "" {
		return 0, nil
	}
	rate, err := strconv.ParseFloat(text, 64)
	if err != nil || !(rate > 0 && rate < 1) {
		return 0, fmt.Errorf("%w: %.40q, expected a number between 0 and 1", trainer.ErrFalseAlarmRate, text)
	}
	return rate, nil
}

// held is the normal images that a training's threshold is to be drawn from. They are
// read before the training, so that nobody waits for one in vain; nil is none.
type held struct{ data *dataset.Dataset }

// hold reads the part calibrationFile of a training's form.
func (s *Server) hold(ctx context.Context, src *dataset.Source, o trainer.Options) (*held, error) {
	if src == nil {
		return nil, nil
	}
	data, err := trainer.LoadCalibrationImages(ctx, s.engine, src, o)
	if err != nil {
		return nil, inCalibration(err)
	}
	return &held{data}, nil
}

// inCalibration says which of two zips an error is of.
func inCalibration(err error) error { return fmt.Errorf("in calibrationFile: %w", err) }

// Close gives the images' memory back.
func (h *held) Close() {
	if h != nil {
		h.data.Close()
	}
}

// training is how long the training may take of what is left of the time.
func (h *held) training(left time.Duration) time.Duration {
	if h == nil {
		return left
	}
	return left - time.Duration(calibrationShare*float64(left))
}

// calibrateHeld gives the trained model the threshold of the images that were held back,
// in what is left of the time, or as long as it takes where the end is zero.
func (s *Server) calibrateHeld(ctx context.Context, c *fiber.Ctx, m *models.Model, h *held, o trainer.Options, end time.Time) (*models.Model, error) {
	if h == nil {
		return m, nil
	}
	o.MaxTime = 0
	if !end.IsZero() {
		const sending = 500 * time.Millisecond // and writing the zip
		o.MaxTime = max(time.Until(end)-sending, 1)
	}
	again, r, err := trainer.Recalibrate(ctx, s.engine, m, h.data, o)
	if err != nil {
		return nil, inCalibration(err)
	}
	tellCalibration(c, r)
	return again, nil
}
