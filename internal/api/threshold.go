package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
)

const (
	// maxPatchBytes is the maximum size of the body of a PATCH, in bytes.
	maxPatchBytes = 4 << 10
	// maxNote is the maximum length of a note, in characters.
	maxNote = 200
)

var (
	errPatch    = badRequest(`The body must be JSON with either threshold or false_alarm_rate, such as {"threshold": 1.5}, and an optional note`)
	errNoImages = badRequest("No ZIP file uploaded: send a zip of normal images as the part zipFile")
	errLongNote = badRequest(fmt.Sprintf("The note has more than %d characters", maxNote))
	errRate     = badRequest("The false_alarm_rate must be a number between 0 and 1")
)

// thresholdChange is the body of PATCH /models/{name}.
type thresholdChange struct {
	Threshold      *float64 `json:"threshold"`
	FalseAlarmRate *float64 `json:"false_alarm_rate"`
	Note           string   `json:"note"`
}

func parseThresholdChange(body []byte) (p thresholdChange, err error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, errPatch
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return p, errPatch
	}
	if (p.Threshold == nil) == (p.FalseAlarmRate == nil) {
		return p, errPatch
	}
	if r := p.FalseAlarmRate; r != nil && !(*r > 0 && *r < 1) {
		return p, errRate
	}
	p.Note = strings.Join(strings.FieldsFunc(p.Note, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }), " ")
	if utf8.RuneCountInString(p.Note) > maxNote {
		return p, errLongNote
	}
	return p, nil
}

// apply returns the model with the new threshold, and the reason for its version.
func (p thresholdChange) apply(m *models.Model) (again *models.Model, reason string, err error) {
	if p.Threshold != nil {
		again, err = trainer.WithThreshold(m, *p.Threshold)
		reason = fmt.Sprintf("threshold moved to %.4g", *p.Threshold)
	} else {
		again, err = trainer.WithFalseAlarmRate(m, *p.FalseAlarmRate)
		reason = fmt.Sprintf("threshold moved to a false alarm rate of %.4g", *p.FalseAlarmRate)
	}
	if p.Note != "" {
		reason += ": " + p.Note
	}
	return again, reason, err
}

// patchModel answers PATCH /models/{name} with the entry of the version with the new
// threshold.
func (s *Server) patchModel(c *fiber.Ctx) error {
	name, err := s.acceptForModel(c)
	if err != nil {
		return err
	}
	body, err := s.readBody(c, "The change of a model", maxPatchBytes)
	if err != nil {
		return err
	}
	p, err := parseThresholdChange(body)
	if err != nil {
		return err
	}
	ctx, done := s.workContext(c)
	defer done()
	if err := s.versionSlots.acquire(ctx); err != nil {
		return err
	}
	defer s.versionSlots.release()
	d, release, err := s.namedDetector(ctx, name)
	if err != nil {
		return s.shutdownError(err)
	}
	defer release()
	m, reason, err := p.apply(d.Model())
	if err != nil {
		return err
	}
	e, err := s.storeModel(ctx, name, m, registry.Change{Reason: reason, SameScores: true, Of: d.Model().SHA256})
	if err != nil {
		return s.shutdownError(err)
	}
	_, threshold := m.Metadata.Measure()
	s.log.Info("threshold moved", slog.String("id", requestID(c)), slog.String("name", name), slog.Float64("threshold", threshold), slog.String("sha256", e.SHA256))
	return c.JSON(e)
}

// calibrateByName answers POST /models/{name}/calibrate.
func (s *Server) calibrateByName(c *fiber.Ctx) error {
	name, err := s.acceptForModel(c)
	if err != nil {
		return err
	}
	f, timer, err := s.receiveForm(c, workTrain, map[string]field{
		"zipFile":          {maxBytes: s.options.BodyBytes, spool: true},
		"false_alarm_rate": {maxBytes: maxFieldBytes},
	})
	if err != nil {
		return err
	}
	defer f.Close()
	if f.files["zipFile"] == nil {
		return errNoImages
	}
	o := s.trainerOptions()
	if o.FalseAlarmRate, err = parseRate(f.text("false_alarm_rate")); err != nil {
		return err
	}
	src, err := f.openZip("zipFile", o.Limits)
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
	d, release, err := s.namedDetector(ctx, name)
	if err != nil {
		return s.shutdownError(err)
	}
	defer release()
	m := d.Model()
	o = o.ForModel(m)
	data, err := trainer.LoadCalibrationImages(ctx, s.engine, src, o)
	if err != nil {
		return err
	}
	defer data.Close()
	again, r, err := trainer.Recalibrate(ctx, s.engine, m, data, o)
	if err != nil {
		return err
	}
	e, err := s.storeModel(ctx, name, again, registry.Change{Reason: fmt.Sprintf("calibrated on %d images", r.Images), Of: m.SHA256})
	if err != nil {
		return s.shutdownError(err)
	}
	s.log.Info("model calibrated", slog.String("id", requestID(c)), slog.String("name", name), slog.Int("images", r.Images), slog.Int("skipped", r.Skipped),
		slog.Any("warnings", r.Warnings), slog.Float64("threshold", r.After), slog.Duration("took", time.Since(started)))
	warnings := allWarnings(r.Warnings, r.Skipped, r.SkippedFiles)
	if warnings == nil {
		warnings = []string{}
	}
	return c.JSON(fiber.Map{"model": e, "warnings": warnings, "report": r})
}
