package models

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"unicode/utf16"
	"unicode/utf8"
)

// ErrMetadata is returned, wrapped with what is wrong, when a metadata.json
// cannot be read or holds values that no verdict can be based on.
var ErrMetadata = errors.New("unusable metadata")

// DefaultThreshold is what a model is judged by that carries no threshold of
// its own, as the Python service's checkpoints do not.
const DefaultThreshold = 0.02

// MeasureMSE is the plain mean squared error over all pixels and channels.
const MeasureMSE = "mse"

// MaxMetadataBytes bounds a metadata.json.
const MaxMetadataBytes = 8 << 20

// maxMetadataValues bounds what a metadata.json lists. A few bytes of JSON become
// an element of many: 3 MB took 180 MB.
const maxMetadataValues = 1 << 16

// GenericClassNames are the class names of a model that was trained without
// any.
func GenericClassNames() []string { return []string{"normal", "anomaly"} }

// Metadata is the content of metadata.json. The first seven keys are those of
// the Python service, with its meaning.
type Metadata struct {
	ModelType      string    `json:"model_type"`
	ImageSize      int       `json:"image_size"`
	Threshold      float64   `json:"threshold"`
	MeanError      float64   `json:"mean_error"`
	StdError       float64   `json:"std_error"`
	TrainingLosses []float64 `json:"training_losses"`
	ClassNames     []string  `json:"class_names,omitempty"`

	// Decision is how the model decides when it is not by the plain mean
	// squared error; nil means by MeasureMSE and Threshold.
	Decision *Decision `json:"decision,omitempty"`
	// Detectability tells which synthetic anomalies the model finds; nil where that
	// was not measured.
	Detectability *Detectability `json:"detectability,omitempty"`

	FormatVersion int              `json:"format_version,omitempty"`
	Architecture  *Architecture    `json:"architecture,omitempty"`
	Preprocessing *Preprocessing   `json:"preprocessing,omitempty"`
	Training      *TrainingSummary `json:"training,omitempty"`
	// Files holds the SHA-256 of the model files that this metadata came with,
	// by file name, in hexadecimal.
	Files map[string]string `json:"files,omitempty"`
}

// FormatVersion is the version of the metadata this package writes.
const FormatVersion = 1

// Decision names the measure that a verdict is based on and its threshold.
type Decision struct {
	Measure   string  `json:"measure"`
	Threshold float64 `json:"threshold"`
	// Backbone is what features come from, nil for a measure without.
	Backbone *Backbone `json:"backbone,omitempty"`
	// FalseAlarmRate is the share of normal images expected above Threshold.
	FalseAlarmRate float64 `json:"false_alarm_rate,omitempty"`
	// Normals is how many normal images, not learnt from, Threshold was drawn
	// from, and MinFalseAlarmRate the lowest rate that so many can promise: one in
	// Normals + 1.
	CalibrationImages int     `json:"normals,omitempty"`
	MinFalseAlarmRate float64 `json:"supported_rate,omitempty"`
	// Scores are quantiles, at equal steps from the smallest to the largest, of the
	// anomaly scores that Threshold was drawn from: all of them where there are no
	// more than MaxScores. They ascend. A model without them can judge, but nobody
	// can tell how far later images are from those of its calibration.
	Scores []float64 `json:"scores,omitempty"`
	// CalibratedOn tells of the images that Threshold was drawn from when they were
	// given for that; nil for those of the training.
	CalibratedOn *CalibrationSummary `json:"calibrated_on,omitempty"`
}

// MaxScores is the largest number of quantiles in Decision.Scores: the percentiles,
// both ends included.
const MaxScores = 101

// CalibrationSummary tells what a model was calibrated on after its training. It has
// no date, so that the same images give the same bytes.
type CalibrationSummary struct {
	// Images is how many images were measured, Skipped how many could not be read;
	// SkippedFiles names the first hundred of those.
	Images       int           `json:"images"`
	Skipped      int           `json:"skipped"`
	SkippedFiles []SkippedFile `json:"skipped_files,omitempty"`
	// Model is the SHA-256 of the model file that was calibrated anew, in
	// hexadecimal; empty for a calibration that ended a training.
	Model    string   `json:"model,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// Preprocessing records how an image became the network's input, so that
// another runtime can do the same.
type Preprocessing struct {
	ColorMode string  `json:"color_mode"` // "RGB"
	Resize    string  `json:"resize"`     // "pillow-bilinear": antialiased triangle filter
	Scale     float64 `json:"scale"`      // factor on the 8-bit value
	Layout    string  `json:"layout"`     // "NCHW"
}

// StandardPreprocessing is the one way images are prepared here.
func StandardPreprocessing() *Preprocessing {
	return &Preprocessing{ColorMode: "RGB", Resize: "pillow-bilinear", Scale: 1.0 / 255, Layout: "NCHW"}
}

// TrainingSummary tells what a model was trained on and how.
type TrainingSummary struct {
	Level        int     `json:"level"`
	Epochs       int     `json:"epochs"`
	BatchSize    int     `json:"batch_size"`
	LearningRate float64 `json:"learning_rate"`
	// Steps were taken of PlannedSteps; Ended says why there were no more.
	Steps        int    `json:"steps,omitempty"`
	PlannedSteps int    `json:"planned_steps,omitempty"`
	Ended        Ending `json:"ended,omitempty"`
	// MaxSeconds is the time the training was given; 0 for as long as it took.
	MaxSeconds float64 `json:"max_seconds,omitempty"`
	Seed       int64   `json:"seed"`
	// Base is the SHA-256 of the model file that the training went on from,
	// empty when it started from random weights.
	Base   string `json:"base,omitempty"`
	Images int    `json:"images"`
	// GaborHeadSteps is how many steps each marker of defects was trained for in a model
	// of an earlier version, HeadSteps how many each head was; 0 for a model without.
	GaborHeadSteps int `json:"marker_steps,omitempty"`
	HeadSteps      int `json:"head_steps,omitempty"`
	// Calibrated is how many of the images the threshold comes from: all, or as
	// many as there was time for.
	Calibrated int `json:"calibrated,omitempty"`
	// Skipped counts the images that could not be read; SkippedFiles names
	// them (the first hundred) with the reason.
	Skipped      int           `json:"skipped"`
	SkippedFiles []SkippedFile `json:"skipped_files,omitempty"`
	Warnings     []string      `json:"warnings,omitempty"`
}

// EpochsDone is how many epochs the steps come to.
func (s TrainingSummary) EpochsDone() float64 {
	if s.PlannedSteps == 0 {
		return float64(s.Epochs)
	}
	return float64(s.Epochs) * float64(s.Steps) / float64(s.PlannedSteps)
}

// Ending says why a training ended.
type Ending string

// The endings of a training.
const (
	// EndedComplete is a training that took all the steps of its level.
	EndedComplete Ending = "complete"
	// EndedByTime is one whose steps did not fit in the time it was given.
	EndedByTime Ending = "max_seconds"
	// EndedByCaller is one that was stopped: the model is the one so far.
	EndedByCaller Ending = "stopped"
)

// SkippedFile is an entry of the data set that was left out of the training.
type SkippedFile struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// ParseMetadata reads a metadata.json, which may begin with a byte order mark. Unknown
// keys are ignored. It returns ErrMetadata, wrapped, for malformed JSON and for values no verdict can be
// based on: a threshold that is missing, negative or not finite.
func ParseMetadata(data []byte) (Metadata, error) {
	// The outer keys take theirs from the inner ones, and tell a missing threshold
	// from one of 0.
	var read struct {
		Metadata
		Threshold *float64 `json:"threshold"`
		Decision  *struct {
			Decision
			Threshold *float64 `json:"threshold"`
		} `json:"decision"`
	}
	if err := parseJSON(data, &read); err != nil {
		return Metadata{}, fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	if read.Threshold == nil {
		return Metadata{}, fmt.Errorf("%w: it has no threshold", ErrMetadata)
	}
	m := read.Metadata
	m.Threshold = *read.Threshold
	if d := read.Decision; d != nil {
		if d.Threshold == nil {
			return Metadata{}, fmt.Errorf("%w: its decision has no threshold", ErrMetadata)
		}
		m.Decision = &d.Decision
		m.Decision.Threshold = *d.Threshold
	}
	if err := m.Validate(); err != nil {
		return Metadata{}, err
	}
	return m, nil
}

// parseJSON unmarshals JSON from anybody.
func parseJSON(data []byte, into any) error {
	if len(data) > MaxMetadataBytes {
		return fmt.Errorf("%d bytes, at most %d are read", len(data), MaxMetadataBytes)
	}
	data = toUTF8(data)
	if n := listed(data); n > maxMetadataValues {
		return fmt.Errorf("it lists %d values, at most %d are read", n, maxMetadataValues)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%.200s", err) // it may quote a number of any length
	}
	return nil
}

// toUTF8 returns JSON without its byte order mark. It converts UTF-16, which must have
// one: editors on Windows write both. RFC 8259 allows readers to ignore the mark.
func toUTF8(data []byte) []byte {
	for _, mark := range []struct {
		bytes string
		order binary.ByteOrder
	}{{"\xfe\xff", binary.BigEndian}, {"\xff\xfe", binary.LittleEndian}} {
		if text, ok := bytes.CutPrefix(data, []byte(mark.bytes)); ok {
			return utf8OfUTF16(text, mark.order)
		}
	}
	return bytes.TrimPrefix(data, []byte("\ufeff"))
}

// utf8OfUTF16 converts UTF-16 text to UTF-8. It replaces what is not valid by U+FFFD. The
// result is at most 1.5 times as long as the text.
func utf8OfUTF16(text []byte, order binary.ByteOrder) []byte {
	out := make([]byte, 0, len(text))
	for len(text) >= 2 {
		r := rune(order.Uint16(text))
		text = text[2:]
		if utf16.IsSurrogate(r) && len(text) >= 2 {
			if pair := utf16.DecodeRune(r, rune(order.Uint16(text))); pair != utf8.RuneError {
				r, text = pair, text[2:]
			}
		}
		out = utf8.AppendRune(out, r) // U+FFFD for a single surrogate
	}
	if len(text) > 0 {
		out = utf8.AppendRune(out, utf8.RuneError)
	}
	return out
}

// listed counts the values that JSON lists by the commas between them.
func listed(data []byte) int {
	n, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '\\' && quoted:
			i++ // what is escaped ends no string
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			n++
		}
	}
	return n
}

// Validate returns ErrMetadata, wrapped, when no verdict can be based on m.
func (m Metadata) Validate() error {
	if err := validThreshold(m.Threshold); err != nil {
		return err
	}
	if m.ModelType != "" && m.ModelType != ModelType {
		return fmt.Errorf("%w: model_type is %.60q, expected %q", ErrMetadata, m.ModelType, ModelType)
	}
	if m.Detectability != nil {
		if err := m.Detectability.Validate(); err != nil {
			return err
		}
	}
	if m.Decision != nil {
		switch m.Decision.Measure {
		case MeasureMSE, MeasureBandMahalanobis, MeasurePatchMahalanobis:
		default:
			return fmt.Errorf("%w: it decides by %.60q, which this version does not know", ErrMetadata, m.Decision.Measure)
		}
		if err := m.Decision.checkBackbone(); err != nil {
			return err
		}
		if err := validThreshold(m.Decision.Threshold); err != nil {
			return err
		}
		return validScores(m.Decision.Scores)
	}
	return nil
}

func validScores(scores []float64) error {
	if len(scores) > MaxScores {
		return fmt.Errorf("%w: %d scores of the calibration, at most %d are read", ErrMetadata, len(scores), MaxScores)
	}
	for i, v := range scores {
		if math.IsNaN(v) || math.IsInf(v, 0) || i > 0 && v < scores[i-1] {
			return fmt.Errorf("%w: score %d of the calibration is %v, expected ascending finite numbers", ErrMetadata, i, v)
		}
	}
	return nil
}

func validThreshold(t float64) error {
	if math.IsNaN(t) || math.IsInf(t, 0) || t < 0 {
		return fmt.Errorf("%w: threshold %v, expected a number of 0 or more", ErrMetadata, t)
	}
	return nil
}

// Measure is the name of the measure a verdict is based on, and its threshold.
func (m Metadata) Measure() (name string, threshold float64) {
	if m.Decision != nil {
		return m.Decision.Measure, m.Decision.Threshold
	}
	return MeasureMSE, m.Threshold
}

// OverrideWarnings returns what a user should know before meta replaces the metadata of m,
// as sentences. It returns none for a nil meta, which replaces nothing.
func OverrideWarnings(m *Model, meta *Metadata) []string {
	if meta == nil || meta.Decision != nil {
		return nil
	}
	own, _ := m.Metadata.Measure()
	if own == MeasureMSE {
		return nil
	}
	return []string{fmt.Sprintf("the metadata names no decision: the verdict is by %s, not by the model's %s; "+
		"to change only the threshold, send the model's own metadata.json with another decision.threshold", MeasureMSE, own)}
}

// Classes are the class names, the generic ones where there are none.
func (m Metadata) Classes() []string {
	if len(m.ClassNames) == 0 {
		return GenericClassNames()
	}
	return m.ClassNames
}
