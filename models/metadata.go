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

// ErrMetadata is returned, wrapped, when a metadata.json cannot be parsed or has
// values that make a verdict impossible.
var ErrMetadata = errors.New("unusable metadata")

// DefaultThreshold is the threshold of a model file that has none, such as the
// checkpoints of the Python service.
const DefaultThreshold = 0.02

// MeasureMSE is the anomaly score that is the mean squared reconstruction error over
// all pixels and channels.
const MeasureMSE = "mse"

// MaxMetadataBytes is the largest size of a metadata.json, in bytes.
const MaxMetadataBytes = 8 << 20

// maxMetadataValues bounds the values in lists and objects of a metadata.json: a few
// bytes of JSON can decode to a much larger element (3 MB of JSON took 180 MB).
const maxMetadataValues = 1 << 16

// GenericClassNames returns the class names for a model that has none.
func GenericClassNames() []string { return []string{"normal", "anomaly"} }

// Metadata is the content of metadata.json. The first seven keys have the meaning
// that they have in the Python service.
type Metadata struct {
	ModelType      string    `json:"model_type"`
	ImageSize      int       `json:"image_size"`
	Threshold      float64   `json:"threshold"`
	MeanError      float64   `json:"mean_error"`
	StdError       float64   `json:"std_error"`
	TrainingLosses []float64 `json:"training_losses"`
	ClassNames     []string  `json:"class_names,omitempty"`

	// Decision is the anomaly score and threshold of the model; nil means MeasureMSE
	// and Threshold.
	Decision *Decision `json:"decision,omitempty"`
	// Detectability records which synthetic anomalies the model detects; nil when
	// that was not measured.
	Detectability *Detectability `json:"detectability,omitempty"`

	FormatVersion int              `json:"format_version,omitempty"`
	Architecture  *Architecture    `json:"architecture,omitempty"`
	Preprocessing *Preprocessing   `json:"preprocessing,omitempty"`
	Training      *TrainingSummary `json:"training,omitempty"`
	// Files maps the names of the model files that were written together with this
	// metadata to their SHA-256, in hexadecimal.
	Files map[string]string `json:"files,omitempty"`
}

// Versions of the metadata format. Version 2 has what Preprocessing.Width and the fields
// after it describe. A model that needs none of them is written in version 1, which all
// programs read.
const (
	FormatVersion       = 1
	FramedFormatVersion = 2
)

// Decision is the kind of anomaly score that decides, its threshold, and how the
// threshold was calibrated.
type Decision struct {
	Measure   string  `json:"measure"`
	Threshold float64 `json:"threshold"`
	// Backbone is the network that extracts features, nil for a score without one.
	Backbone *Backbone `json:"backbone,omitempty"`
	// FalseAlarmRate is the share of normal images expected above Threshold.
	FalseAlarmRate float64 `json:"false_alarm_rate,omitempty"`
	// CalibrationImages is the number n of held-out normal images that Threshold was
	// computed from. MinFalseAlarmRate is the minimum achievable false alarm rate,
	// 1/(n+1).
	CalibrationImages int     `json:"normals,omitempty"`
	MinFalseAlarmRate float64 `json:"supported_rate,omitempty"`
	// Scores are equally spaced quantiles, ascending, of the anomaly scores that
	// Threshold was computed from, or all of these scores when there are at most
	// MaxScores. Without them a change in the distribution of later scores cannot be
	// detected.
	Scores []float64 `json:"scores,omitempty"`
	// CalibratedOn describes the calibration images when they were given separately;
	// nil when Threshold was computed from training images.
	CalibratedOn *CalibrationSummary `json:"calibrated_on,omitempty"`
	// Tiles relates the score to the number of tiles of an image, for
	// MeasureTiledPatchMahalanobis; else nil.
	Tiles *TileCalibration `json:"tiles,omitempty"`
}

// MaxScores is the largest number of quantiles in Decision.Scores: the percentiles
// from 0 to 100.
const MaxScores = 101

// CalibrationSummary describes the images that a model was calibrated on after its
// training. It has no date, so that the same images result in the same bytes.
type CalibrationSummary struct {
	// Images is the number of scored images and Skipped the number of unreadable
	// ones; SkippedFiles lists the first hundred of these.
	Images       int           `json:"images"`
	Skipped      int           `json:"skipped"`
	SkippedFiles []SkippedFile `json:"skipped_files,omitempty"`
	// Model is the SHA-256, in hexadecimal, of the model file before calibration;
	// empty when the calibration was part of a training.
	Model    string   `json:"model,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// TrainingSummary describes the data and the course of a training.
type TrainingSummary struct {
	Level        int     `json:"level"`
	Epochs       int     `json:"epochs"`
	BatchSize    int     `json:"batch_size"`
	LearningRate float64 `json:"learning_rate"`
	// Steps is the number of training steps taken of PlannedSteps; Ended is the
	// reason for stopping.
	Steps        int    `json:"steps,omitempty"`
	PlannedSteps int    `json:"planned_steps,omitempty"`
	Ended        Ending `json:"ended,omitempty"`
	// MaxSeconds is the time budget of the training, in seconds; 0 means none.
	MaxSeconds float64 `json:"max_seconds,omitempty"`
	Seed       int64   `json:"seed"`
	// Base is the SHA-256, in hexadecimal, of the model file that the training
	// continued from; empty when it started from random weights.
	Base   string `json:"base,omitempty"`
	Images int    `json:"images"`
	// HeadSteps is the number of training steps of each defect head, GaborHeadSteps
	// that of each head of an earlier version; 0 for a model without.
	GaborHeadSteps int `json:"marker_steps,omitempty"`
	HeadSteps      int `json:"head_steps,omitempty"`
	// Calibrated is the number of images that the threshold was computed from. It is
	// less than Images when the time budget ran out.
	Calibrated int `json:"calibrated,omitempty"`
	// Skipped is the number of unreadable images; SkippedFiles lists the first
	// hundred of them with the reason.
	Skipped      int           `json:"skipped"`
	SkippedFiles []SkippedFile `json:"skipped_files,omitempty"`
	Warnings     []string      `json:"warnings,omitempty"`
}

// EpochsDone returns the number of epochs that Steps corresponds to.
func (s TrainingSummary) EpochsDone() float64 {
	if s.PlannedSteps == 0 {
		return float64(s.Epochs)
	}
	return float64(s.Epochs) * float64(s.Steps) / float64(s.PlannedSteps)
}

// Ending is the reason why a training ended.
type Ending string

// The endings of a training.
const (
	// EndedComplete means that all planned steps were taken.
	EndedComplete Ending = "complete"
	// EndedByTime means that the time budget ran out.
	EndedByTime Ending = "max_seconds"
	// EndedByCaller means that the caller stopped the training; the model is the
	// state at that time.
	EndedByCaller Ending = "stopped"
)

// SkippedFile is a file of the data set that was not used, and the reason.
type SkippedFile struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// ParseMetadata parses a metadata.json, which may begin with a byte order mark. It ignores
// unknown keys. It returns ErrMetadata, wrapped, for malformed JSON, for a missing threshold
// and for the values that Validate rejects.
func ParseMetadata(data []byte) (Metadata, error) {
	// The outer fields hide the embedded ones of the same key. As pointers they
	// distinguish a missing threshold from 0.
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

// parseJSON unmarshals untrusted JSON.
func parseJSON(data []byte, into any) error {
	if len(data) > MaxMetadataBytes {
		return fmt.Errorf("%d bytes, at most %d are read", len(data), MaxMetadataBytes)
	}
	data = toUTF8(data)
	if n := countCommas(data); n > maxMetadataValues {
		return fmt.Errorf("it lists %d values, at most %d are read", n, maxMetadataValues)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%.200s", err) // err may quote a number of any length
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

// countCommas returns the number of commas outside of strings, which bounds the
// number of values in the JSON.
func countCommas(data []byte) int {
	n, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '\\' && quoted:
			i++ // an escaped quote does not end the string
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			n++
		}
	}
	return n
}

// Validate returns ErrMetadata, wrapped, when a verdict based on m is impossible: a
// threshold is negative or not finite, or the kind of model, anomaly score or
// backbone is unknown.
func (m Metadata) Validate() error {
	if err := validThreshold(m.Threshold); err != nil {
		return err
	}
	if m.ModelType != "" && m.ModelType != ModelType {
		return fmt.Errorf("%w: model_type is %.60q, expected %q", ErrMetadata, m.ModelType, ModelType)
	}
	if err := m.Preprocessing.Validate(); err != nil {
		return err
	}
	if m.FormatVersion > FramedFormatVersion {
		return fmt.Errorf("%w: format_version is %d, this program reads %d at most; use the program that wrote it, or a later one", ErrMetadata, m.FormatVersion, FramedFormatVersion)
	}
	if m.Detectability != nil {
		if err := m.Detectability.Validate(); err != nil {
			return err
		}
	}
	if m.Decision != nil {
		switch m.Decision.Measure {
		case MeasureMSE, MeasureBandMahalanobis, MeasurePatchMahalanobis, MeasureTiledPatchMahalanobis:
		default:
			return fmt.Errorf("%w: it decides by %.60q, which this version does not support", ErrMetadata, m.Decision.Measure)
		}
		if err := m.Decision.checkBackbone(); err != nil {
			return err
		}
		if err := validThreshold(m.Decision.Threshold); err != nil {
			return err
		}
		if err := m.Decision.Tiles.validate(); err != nil {
			return err
		}
		return validScores(m.Decision.Scores)
	}
	return nil
}

// validScores returns ErrMetadata, wrapped, unless the scores are finite, ascending
// and at most MaxScores.
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

// validThreshold returns ErrMetadata, wrapped, unless t is finite and not negative.
func validThreshold(t float64) error {
	if math.IsNaN(t) || math.IsInf(t, 0) || t < 0 {
		return fmt.Errorf("%w: threshold %v, expected a number of 0 or more", ErrMetadata, t)
	}
	return nil
}

// Measure returns the kind of anomaly score that decides, and its threshold.
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

// WithThreshold returns a copy with another threshold of the same measure. It returns false
// if the threshold is not a finite number of 0 or more.
func (m Metadata) WithThreshold(threshold float64) (*Metadata, bool) {
	if !(threshold >= 0) || math.IsInf(threshold, 0) {
		return nil, false
	}
	if m.Decision == nil {
		m.Threshold = threshold
		return &m, true
	}
	d := *m.Decision
	d.Threshold = threshold
	m.Decision = &d
	return &m, true
}

// Classes returns the class names, or the generic ones when there are none.
func (m Metadata) Classes() []string {
	if len(m.ClassNames) == 0 {
		return GenericClassNames()
	}
	return m.ClassNames
}
