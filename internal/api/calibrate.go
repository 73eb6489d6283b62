package api

import (
	"bytes"
	"fmt"
	"io"
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

// The headers of a calibrated model's answer. A client can read them without unpacking
// the zip.
const (
	// headerCalibrationImages is the number of images that were scored.
	headerCalibrationImages = "X-Calibration-Images"
	// headerCalibrationFalseAlarms is the share of them above the previous threshold.
	headerCalibrationFalseAlarms = "X-Calibration-False-Alarms"
	// headerCalibrationShift is the difference of their mean score from that of the
	// previous calibration, in standard deviations. It is missing if the model does not
	// contain the scores of that calibration.
	headerCalibrationShift = "X-Calibration-Shift"
	// headerCalibrationWarnings has the warnings of the calibration, as encodeWarnings
	// returns them. It is missing if there are none.
	headerCalibrationWarnings = "X-Calibration-Warnings"
)

// calibrate answers POST /calibrate with the zip of the model with a new threshold.
func (s *Server) calibrate(c *fiber.Ctx) error {
	f, timer, err := s.receiveForm(c, workTrain, map[string]field{
		"modelFile":       {maxBytes: s.options.Models.MaxBytes},
		"calibrationFile": {maxBytes: s.options.BodyBytes, spool: true},

		"false_alarm_rate": {maxBytes: maxFieldBytes},
	})
	if err != nil {
		return err
	}
	defer f.Close()
	m, src, o, err := s.parseCalibration(f)
	if err != nil {
		return err
	}
	ctx, done := s.workContext(c)
	defer done()
	if err := s.trainingSlots.acquire(ctx); err != nil {
		return err
	}
	defer s.trainingSlots.release()
	timer.done(stageQueue)
	started := time.Now()
	o.Preprocessing = m.Metadata.InputPreprocessing()
	data, err := trainer.LoadCalibrationImages(ctx, s.engine, src, o)
	if err != nil {
		return err
	}
	defer data.Close()
	m, r, err := trainer.Recalibrate(ctx, s.engine, m, data, o)
	if err != nil {
		return err
	}
	bundle, err := bundleOf(m)
	if err != nil {
		return err
	}
	sendBundle(c, bytes.NewReader(bundle), len(bundle))
	s.log.Info("model calibrated", slog.String("id", requestID(c)), slog.Int("images", r.Images), slog.Int("skipped", r.Skipped),
		slog.Any("warnings", r.Warnings), slog.Any("skipped_files", r.SkippedFiles),
		slog.Float64("threshold", r.After), slog.Duration("took", time.Since(started)))
	setCalibrationHeaders(c.Set, r)
	return nil
}

// parseCalibration parses the form of a calibration.
func (s *Server) parseCalibration(f *form) (m *models.Model, src *dataset.Source, o trainer.Options, err error) {
	if len(f.memory["modelFile"]) == 0 || f.files["calibrationFile"] == nil {
		return nil, nil, o, errNoCalibration
	}
	o = s.trainerOptions()
	if o.FalseAlarmRate, err = parseRate(f.text("false_alarm_rate")); err != nil {
		return nil, nil, o, err
	}
	if m, err = models.Read(f.memory["modelFile"], s.options.Models); err != nil {
		return nil, nil, o, err
	}
	o = o.ForModel(m)
	src, err = f.openZip("calibrationFile", o.Limits)
	return m, src, o, err
}

func setCalibrationHeaders(set func(name, value string), r *trainer.Recalibration) {
	set(headerCalibrationImages, strconv.Itoa(r.Images))
	set(headerCalibrationFalseAlarms, fmt.Sprintf("%.4f", r.AboveBefore.Share))
	if r.Shift != nil {
		set(headerCalibrationShift, fmt.Sprintf("%.2f", r.Shift.Deviations))
	}
	setWarnings(set, headerCalibrationWarnings, r.Warnings, r.Skipped, r.SkippedFiles)
}

// bundleOf returns the zip of a model.
func bundleOf(m *models.Model) ([]byte, error) {
	var bundle bytes.Buffer
	err := exporter.WriteBundle(&bundle, m)
	return bundle.Bytes(), err
}

// sendBundle sets the answer to the zip of a model.
func sendBundle(c *fiber.Ctx, bundle io.Reader, size int) {
	c.Attachment(exporter.BundleFile)
	c.Set(fiber.HeaderContentType, "application/zip")
	c.Context().SetBodyStream(bundle, size)
}

// closingBody is the body of an answer. It calls closed when the body is sent or cannot be
// sent.
type closingBody struct {
	io.Reader
	closed func()
}

func (b *closingBody) Close() error {
	b.closed()
	return nil
}
