package trainer

import (
	"errors"
	"fmt"
	"math"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/models"
)

// ErrThreshold is returned, wrapped, for a threshold that is not a finite number of 0 or
// more.
var ErrThreshold = errors.New("unusable threshold")

// ErrNoScores is returned when a model does not contain the scores of its calibration.
var ErrNoScores = errors.New("the model does not contain the scores of its calibration; calibrate it, or set a threshold")

// ErrRateTooLow is returned, wrapped, for a false alarm rate below the minimum achievable
// one of the model's calibration.
var ErrRateTooLow = calibration.ErrRateTooLow

// WithThreshold returns a model that decides by another threshold. It shares weights with
// m and does not change m. Its false alarm rate is the one that the threshold promises by
// the scores of the model's calibration, or 0 without them. It returns ErrThreshold.
func WithThreshold(m *models.Model, threshold float64) (*models.Model, error) {
	if math.IsNaN(threshold) || math.IsInf(threshold, 0) || threshold < 0 {
		return nil, fmt.Errorf("%w: %v, expected a number of 0 or more", ErrThreshold, threshold)
	}
	rate := 0.0
	if r, ok := calibration.RanksOf(m.Metadata.Decision); ok {
		rate = r.Rate(threshold)
	}
	return withThreshold(m, threshold, rate), nil
}

// WithFalseAlarmRate is WithThreshold with the conformal threshold for a false alarm rate,
// by the scores of the model's calibration. It returns ErrFalseAlarmRate, ErrRateTooLow
// and ErrNoScores.
func WithFalseAlarmRate(m *models.Model, rate float64) (*models.Model, error) {
	r, ok := calibration.RanksOf(m.Metadata.Decision)
	if !ok {
		return nil, ErrNoScores
	}
	threshold, err := r.Threshold(rate)
	if errors.Is(err, calibration.ErrRate) {
		return nil, fmt.Errorf("%w: %v, expected a number between 0 and 1", ErrFalseAlarmRate, rate)
	}
	if err != nil {
		return nil, err
	}
	return withThreshold(m, threshold, rate), nil
}

func withThreshold(m *models.Model, threshold, rate float64) *models.Model {
	again := detached(m)
	if d := m.Metadata.Decision; d != nil {
		decision := *d
		decision.Threshold, decision.FalseAlarmRate = threshold, rate
		again.Metadata.Decision = &decision
	} else {
		again.Metadata.Threshold = threshold
	}
	return again
}

// detached returns a copy of a model that belongs to no file and shares its weights. Its
// metadata describes the network completely, even if that of the model's file did not.
func detached(m *models.Model) *models.Model {
	again := *m
	again.Format, again.SHA256 = "", ""
	md := &again.Metadata
	md.ModelType, md.ImageSize, md.FormatVersion = models.ModelType, m.ImageSize, md.Preprocessing.FormatVersion()
	md.Architecture, md.Preprocessing = &again.Architecture, m.Metadata.InputPreprocessing()
	md.ClassNames, md.Files = m.Metadata.Classes(), nil
	return &again
}
