package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
)

// The headers of a trained model's answer. A client can read them without unpacking the
// zip.
const (
	headerTrainingEnded  = "X-Training-Ended"  // why the training ended
	headerTrainingEpochs = "X-Training-Epochs" // epochs completed and planned, such as 12.40/30
	// headerTrainingWarnings has the warnings of the training, as encodeWarnings returns
	// them. It is missing if there are none.
	headerTrainingWarnings = "X-Training-Warnings"
)

// calibrationShare is the share of max_seconds that is reserved for the calibration
// after a training. Scoring an image takes a small part of the time of training on it.
const calibrationShare = 0.1

// train answers POST /train with the zip of the trained model. The training is a job that
// the request waits for: its progress can be read, and it can be cancelled, like that of
// other jobs. Its uploads are the temporary files of the request. A service alone does not
// copy them to the queue of jobs, because the client of a training that was interrupted is
// gone; in a cluster a worker needs them.
func (s *Server) train(c *fiber.Ctx) (err error) {
	if s.draining.Load() {
		return errShuttingDown
	}
	job, err := s.attachJob(c)
	if err != nil {
		return s.rejectUnread(c, err)
	}
	sending := false
	defer func() {
		s.endAttached(c, job, err)
		if !sending {
			job.Release()
		}
	}()
	f, timer, err := s.receiveForm(c, workTrain, s.trainingFields())
	if err != nil {
		return err
	}
	defer f.Close()
	q, err := s.parseTraining(f)
	if err != nil {
		return err
	}
	if q.maxTime == 0 {
		q.maxTime = s.defaultTime
	}
	if q.maxTime > 0 {
		// The upload and the time in the queue count.
		q.end = receivedAt(c).Add(q.maxTime)
	}
	ctx, done := s.workContext(c)
	defer done()
	job.Progress(jobs.Progress{Phase: "waiting for other trainings"}, nil)
	if s.options.Broker != nil {
		timer.done(stageQueue)
		sending, err = s.trainByWorkers(ctx, c, f, q, job)
		return err
	}
	if err := s.admitTraining(ctx, q.end); err != nil {
		return err
	}
	defer s.trainingSlots.release()
	timer.done(stageQueue)
	job.Start()
	m, r, err := s.trainReporting(ctx, q, job, slog.String("id", requestID(c)), slog.String("job", job.ID()))
	if err != nil {
		return err
	}
	bundle, err := bundleOf(m)
	if err != nil {
		return err
	}
	if errors.Is(context.Cause(ctx), errClientGone) { // at the last moment
		return errClientGone
	}
	sum := sha256.Sum256(bundle)
	if err := job.Succeed(hex.EncodeToString(sum[:]), trainingWarnings(m, r)); err != nil {
		return err
	}
	trainingHeaders(m, r, c.Set)
	sendBundle(c, &closingBody{bytes.NewReader(bundle), job.Release}, len(bundle))
	sending = true
	return nil
}

// trainingHeaders sets the headers of the answer with a trained model. r may be nil.
func trainingHeaders(m *models.Model, r *trainer.Recalibration, set func(name, value string)) {
	summary := m.Metadata.Training
	set(headerTrainingEnded, string(summary.Ended))
	set(headerTrainingEpochs, fmt.Sprintf("%.2f/%d", summary.EpochsDone(), summary.Epochs))
	setWarnings(set, headerTrainingWarnings, summary.Warnings, summary.Skipped, summary.SkippedFiles)
	if r != nil {
		setCalibrationHeaders(set, r)
	}
}

// trainReporting is runTraining with its progress reported to a sink, and its result to
// the log.
func (s *Server) trainReporting(ctx context.Context, q trainingRequest, sink progressSink, ids ...any) (*models.Model, *trainer.Recalibration, error) {
	p := jobProgress{sink: sink}
	q.options.Stage = p.stage
	q.options.Progress = func(epochs trainer.Progress) {
		s.metrics.progress(epochs)
		p.epochs(epochs)
	}
	started := time.Now()
	m, r, err := s.runTraining(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	summary := m.Metadata.Training
	s.log.With(ids...).Info("model trained", slog.Int("images", summary.Images),
		slog.Int("skipped", summary.Skipped), slog.Int("level", q.options.Level), slog.Int("image_size", q.options.ImageSize), slog.Any("input", q.options.Input),
		slog.Any("warnings", summary.Warnings), slog.Any("skipped_files", summary.SkippedFiles),
		slog.Float64("threshold", m.Metadata.Threshold), slog.Duration("took", time.Since(started)))
	return m, r, nil
}

// trainingWarnings returns the warnings of a training and of its calibration, which may be
// nil.
func trainingWarnings(m *models.Model, r *trainer.Recalibration) []string {
	summary := m.Metadata.Training
	list := allWarnings(summary.Warnings, summary.Skipped, summary.SkippedFiles)
	if r != nil {
		list = append(slices.Clip(list), allWarnings(r.Warnings, r.Skipped, r.SkippedFiles)...)
	}
	return list
}

// trainingFields returns the fields of the form of a training.
func (s *Server) trainingFields() map[string]field {
	return map[string]field{
		"zipFile":      {maxBytes: s.options.BodyBytes, spool: true},
		"level":        {maxBytes: maxFieldBytes},
		"image_size":   {maxBytes: maxFieldBytes},
		"imageSize":    {maxBytes: maxFieldBytes},
		"fit":          {maxBytes: maxFieldBytes},
		"tile":         {maxBytes: maxFieldBytes},
		"overlap":      {maxBytes: maxFieldBytes},
		"longest_side": {maxBytes: maxFieldBytes},
		"tiles":        {maxBytes: maxFieldBytes},
		"window":       {maxBytes: maxFieldBytes},
		"roi":          {maxBytes: maxBoxesBytes},
		"roiFile":      {maxBytes: s.options.Images.OrDefault().MaxBytes},
		"max_seconds":  {maxBytes: maxFieldBytes},
		"baseModel":    {maxBytes: s.options.Models.MaxBytes},

		"calibrationFile":  {maxBytes: s.options.BodyBytes, spool: true},
		"false_alarm_rate": {maxBytes: maxFieldBytes},
	}
}

// maxBoxesBytes bounds the field with the boxes of a region, in bytes.
const maxBoxesBytes = 8 << 10

// trainingRequest is a parsed form of a training.
type trainingRequest struct {
	options     trainer.Options
	images      *dataset.Source
	calibration *dataset.Source // calibration images; nil for none
	maxTime     time.Duration   // max_seconds; 0 for none
	end         time.Time       // when the time of the training ends; zero for no limit
}

// parseTraining parses the form of a training. It does not set end.
func (s *Server) parseTraining(f *form) (q trainingRequest, err error) {
	if f.files["zipFile"] == nil {
		return q, errNoZip
	}
	o := s.trainerOptions()
	if o.Level, err = parseNumber(f.text("level"), trainer.DefaultLevel, trainer.ErrLevel); err != nil {
		return q, err
	}
	if o, err = o.Prepared(trainer.Preparation{
		Size: cmp.Or(f.text("image_size"), f.text("imageSize")), Fit: f.text("fit"), Window: f.text("window"), Boxes: f.text("roi"), Mask: f.memory["roiFile"],
		Tile: f.text("tile"), Overlap: f.text("overlap"), LongestSide: f.text("longest_side"), Statistics: f.text("tiles"),
	}); err != nil {
		return q, err
	}
	if q.maxTime, err = parseSeconds(f.text("max_seconds")); err != nil {
		return q, err
	}
	if o.FalseAlarmRate, err = parseRate(f.text("false_alarm_rate")); err != nil {
		return q, err
	}
	if base := f.memory["baseModel"]; len(base) > 0 {
		if o.Base, err = models.Read(base, s.options.Models); err != nil {
			return q, err
		}
	}
	if q.options, _, err = o.Settle(); err != nil {
		return q, err
	}
	if size, limit := max(q.options.Input.W, q.options.Input.H), s.options.Models.MaxSide; size > limit {
		return q, fmt.Errorf("%w: %d, this service trains at %d at most", trainer.ErrImageSize, size, limit)
	}
	if q.images, err = f.openZip("zipFile", q.options.Limits); err != nil {
		return q, err
	}
	if f.files["calibrationFile"] != nil {
		if q.calibration, err = f.openZip("calibrationFile", q.options.Limits); err != nil {
			return q, inCalibrationFile(err)
		}
	}
	return q, nil
}

// admitTraining waits for a training slot until end; a zero end means no limit. The
// caller must release the slot after a nil error.
func (s *Server) admitTraining(ctx context.Context, end time.Time) error {
	if !end.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, end, errBusy)
		defer cancel()
	}
	return s.trainingSlots.acquire(ctx)
}

// runTraining trains a model and, if the request has calibration images, calibrates it.
// The Recalibration is nil if it does not. The calibration images are read first, so
// that errors in them are found before the training.
func (s *Server) runTraining(ctx context.Context, q trainingRequest) (*models.Model, *trainer.Recalibration, error) {
	o := q.options
	var calibration *dataset.Dataset
	if q.calibration != nil {
		var err error
		if calibration, err = trainer.LoadCalibrationImages(ctx, s.engine, q.calibration, o); err != nil {
			return nil, nil, inCalibrationFile(err)
		}
		defer func() { calibration.Close() }()
	}
	if !q.end.IsZero() {
		o.MaxTime = time.Until(q.end)
		if calibration != nil {
			o.MaxTime -= time.Duration(calibrationShare * float64(o.MaxTime))
		}
		if o.MaxTime <= 0 {
			return nil, nil, trainer.ErrTooLittleTime
		}
	}
	m, err := trainer.Train(ctx, s.engine, q.images, o)
	if err != nil {
		s.metrics.trained("failed")
		return nil, nil, err
	}
	s.metrics.trained(string(m.Metadata.Training.Ended))
	if calibration == nil {
		return m, nil, nil
	}
	o.MaxTime = 0
	if !q.end.IsZero() {
		const sending = 500 * time.Millisecond // to write and send the zip
		o.MaxTime = max(time.Until(q.end)-sending, 1)
	}
	if p := m.Metadata.InputPreprocessing(); !calibration.PreparedAs(p) {
		o.Preprocessing = p
		again, err := trainer.LoadCalibrationImages(ctx, s.engine, q.calibration, o)
		if err != nil {
			return nil, nil, inCalibrationFile(err)
		}
		calibration.Close()
		calibration = again
	}
	m, r, err := trainer.Recalibrate(ctx, s.engine, m, calibration, o)
	if err != nil {
		return nil, nil, inCalibrationFile(err)
	}
	return m, r, nil
}

// inCalibrationFile marks an error as one of calibrationFile rather than zipFile.
func inCalibrationFile(err error) error { return fmt.Errorf("in calibrationFile: %w", err) }

// trainerOptions returns the options that are common to all trainings and calibrations.
func (s *Server) trainerOptions() trainer.Options {
	return trainer.Options{Seed: s.options.Seed, Limits: s.options.Dataset, Images: s.options.Images, TempDir: s.options.TempDir,
		Threads: s.options.TrainingThreads, Niceness: s.options.TrainingNiceness}
}

// maxTrainingTime bounds max_seconds. Larger values could overflow a time.Duration.
const maxTrainingTime = 30 * 24 * time.Hour

// parseSeconds parses a text field with a number of seconds. It returns 0, no limit, for
// an empty field.
func parseSeconds(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	d := duration(seconds)
	if err != nil || d == 0 {
		return 0, badRequest(fmt.Sprintf("The field max_seconds must be a number above 0 and at most %.0f, got %.40q", maxTrainingTime.Seconds(), text))
	}
	return d, nil
}

// duration converts max_seconds. It returns 0 if they are not above 0 and at most
// maxTrainingTime.
func duration(seconds float64) time.Duration {
	if !(seconds > 0 && seconds <= maxTrainingTime.Seconds()) {
		return 0
	}
	// A time below a nanosecond must not become 0, which means no limit.
	return max(time.Duration(seconds*float64(time.Second)), 1)
}

// parseNumber parses a text field with an integer other than 0. It returns the default
// for an empty field, and invalid, wrapped, for any other text.
func parseNumber(text string, byDefault int, invalid error) (int, error) {
	if text == "" {
		return byDefault, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n == 0 { // 0 means the default in trainer.Options
		return 0, fmt.Errorf("%w, got %.40q", invalid, text)
	}
	return n, nil
}

// parseRate parses a text field with a false alarm rate. It returns 0, the default, for
// an empty field.
func parseRate(text string) (float64, error) {
	if text == "" {
		return 0, nil
	}
	rate, err := strconv.ParseFloat(text, 64)
	if err != nil || !(rate > 0 && rate < 1) {
		return 0, fmt.Errorf("%w: %.40q, expected a number between 0 and 1", trainer.ErrFalseAlarmRate, text)
	}
	return rate, nil
}
