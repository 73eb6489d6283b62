package trainer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// ErrTooFewCalibrationImages is returned, wrapped, when there are too few calibration
// images for a threshold.
var ErrTooFewCalibrationImages = calibration.ErrTooFew

// Recalibration is the report of Recalibrate.
type Recalibration struct {
	// Measure is the kind of anomaly score that the model decides by.
	Measure string `json:"measure"`
	// Images is the number of calibration images. Skipped is the number of files that
	// could not be read; SkippedFiles names some of them.
	Images       int                  `json:"images"`
	Skipped      int                  `json:"skipped"`
	SkippedFiles []models.SkippedFile `json:"skipped_files,omitempty"`
	// Before and After are the thresholds before and after the calibration.
	Before float64 `json:"threshold_before"`
	After  float64 `json:"threshold_after"`
	// FalseAlarmRate is the rate that After is computed for. MinFalseAlarmRate is the
	// minimum achievable false alarm rate of this number of images.
	FalseAlarmRate    float64 `json:"false_alarm_rate"`
	MinFalseAlarmRate float64 `json:"supported_rate"`
	// AboveBefore is the share of the images above the threshold before.
	AboveBefore calibration.Share `json:"above_threshold_before"`
	// Shift compares the images' scores with the previous calibration's; nil if the model
	// does not contain them.
	Shift    *calibration.Shift `json:"shift,omitempty"`
	Warnings []string           `json:"warnings,omitempty"`
}

// ForModel returns the options for the calibration of a model.
func (o Options) ForModel(m *models.Model) Options {
	o.ImageSize, o.Input, o.Preprocessing = m.ImageSize, m.Input(), m.Metadata.InputPreprocessing()
	return o
}

// LoadCalibrationImages reads calibration images, resized to o.Input, with
// o.Preprocessing or, if it is nil, as Train reads its images. It returns
// ErrTooFewCalibrationImages for fewer than calibration.MinImages images, before any is
// decoded if there are too few files, ErrLayout for the training images of an evaluation,
// and the errors that Train returns for a data set.
func LoadCalibrationImages(ctx context.Context, engine *ort.Engine, src *dataset.Source, o Options) (*dataset.Dataset, error) {
	o = o.forCalibration(engine)
	if err := src.CheckHeldOut(); err != nil {
		return nil, err
	}
	if n := src.Images(); n > 0 && n < calibration.MinImages {
		return nil, tooFew(n, src.Refused())
	}
	o.begin(StageReadingImages)
	load := o.dataset()
	if o.Preprocessing != nil {
		load.Images = imagefile.OptionsFor(o.Preprocessing, o.Images)
		load.Tiles = o.Preprocessing.Tiles
		load.KeepDepth = false
		load.Images.MaxValue = cmp.Or(load.Images.MaxValue, imagefile.DefaultMaxValue)
	}
	data, err := dataset.Load(ctx, src, load)
	if err != nil {
		return nil, err
	}
	if n := data.Count(); n < calibration.MinImages {
		return nil, errors.Join(tooFew(n, len(data.Skipped)), data.Close())
	}
	return data, nil
}

func tooFew(images, skipped int) error {
	more := ""
	if skipped > 0 {
		more = fmt.Sprintf(" and %d that cannot be read", skipped)
	}
	return fmt.Errorf("%w: got %d%s, expected at least %d", ErrTooFewCalibrationImages, images, more, calibration.MinImages)
}

// forCalibration returns the options with defaults filled in for a model that is
// trained already.
func (o Options) forCalibration(engine *ort.Engine) Options {
	if o.Input == (models.Size{}) {
		o.Input = models.Square(o.ImageSize)
	}
	if o.Limits == (dataset.Limits{}) {
		o.Limits = dataset.DefaultLimits()
	}
	if o.Images == (imagefile.Limits{}) {
		o.Images = imagefile.DefaultLimits()
	}
	if o.Threads <= 0 || o.Threads > engine.Threads() {
		o.Threads = engine.Threads()
	}
	return o
}

// Recalibrate computes a model's threshold again from normal images of the model's
// image size that it was not trained on, and the offsets and slopes of its members if it
// has any. It also computes mean, standard deviation and threshold of the mean squared
// error. It returns a new model that shares weights with m, and does not change m. The
// same images and seed produce the same model.
//
// Recalibrate uses these options: Threads, Niceness, Seed, FalseAlarmRate (0 means the
// model's own), MaxTime and Stage. When MaxTime is over, it uses the images that are
// done, calibration.MinImages at least.
//
// It returns ErrTooFewCalibrationImages, ErrFalseAlarmRate, inference.ErrNotFinite, and
// the context's cause if ctx ends.
func Recalibrate(ctx context.Context, engine *ort.Engine, m *models.Model, data *dataset.Dataset, o Options) (*models.Model, *Recalibration, error) {
	d, err := inference.NewDetector(engine, m, 1)
	if err != nil {
		return nil, nil, err
	}
	defer d.Close()
	g, err := newGauge(d)
	if err != nil {
		return nil, nil, err
	}
	if data.Tiled() != nil {
		return recalibrateTiles(ctx, m, data, d, g, o.forCalibration(engine))
	}
	return recalibrate(ctx, m, data, g, o.forCalibration(engine))
}

// settleRate sets the false alarm rate of a calibration. It returns ErrFalseAlarmRate.
func (o Options) settleRate(m *models.Model) (Options, error) {
	if o.FalseAlarmRate == 0 {
		o.FalseAlarmRate = DefaultFalseAlarmRate
		if d := m.Metadata.Decision; d != nil && d.FalseAlarmRate > 0 && d.FalseAlarmRate < 1 {
			o.FalseAlarmRate = d.FalseAlarmRate
		}
	}
	if !(o.FalseAlarmRate > 0 && o.FalseAlarmRate < 1) {
		return o, fmt.Errorf("%w: %v, expected a number between 0 and 1", ErrFalseAlarmRate, o.FalseAlarmRate)
	}
	return o, nil
}

func recalibrate(ctx context.Context, m *models.Model, data *dataset.Dataset, g gauge, o Options) (*models.Model, *Recalibration, error) {
	o, err := o.settleRate(m)
	if err != nil {
		return nil, nil, err
	}
	o.begin(StageCalibrating)
	images, err := g.scoreAll(ctx, data, o)
	if err != nil {
		return nil, nil, err
	}
	var anomaly, mse []float64
	var members [][]float64
	for _, s := range images {
		anomaly, mse = append(anomaly, s.anomaly), append(mse, s.mse)
		if s.members != nil {
			members = append(members, s.members)
		}
	}
	var c *calibration.Calibration
	if members != nil {
		c, err = calibration.Fit(members, g.weights, o.FalseAlarmRate)
	} else {
		c, err = calibration.FitScores(anomaly, o.FalseAlarmRate)
	}
	if err != nil {
		return nil, nil, err
	}
	r := newReport(m, data, c, anomaly)
	again := withCalibration(m, c, r, mse)
	if members != nil {
		if err := g.standardize(again, c.Offsets, c.Slopes); err != nil {
			return nil, nil, err
		}
		// Detectability was measured with the old offsets and slopes.
		again.Metadata.Detectability = nil
	}
	return again, r, nil
}

// newReport compares the calibration by the images' anomaly scores with the previous
// one of the model.
func newReport(m *models.Model, data *dataset.Dataset, c *calibration.Calibration, scores []float64) *Recalibration {
	measure, before := m.Metadata.Measure()
	r := &Recalibration{
		Measure: measure, Images: len(scores), Skipped: len(data.Skipped),
		SkippedFiles: data.Skipped[:min(len(data.Skipped), maxNamedSkips)],
		Before:       before, After: c.Threshold, FalseAlarmRate: c.FalseAlarmRate, MinFalseAlarmRate: c.MinFalseAlarmRate,
		AboveBefore: calibration.ShareAbove(scores, before),
		Warnings:    slices.Clone(data.Warnings),
	}
	if ref, ok := calibration.ReferenceOf(m.Metadata.Decision); ok {
		shift := ref.Compare(scores)
		r.Shift = &shift
	}
	if r.MinFalseAlarmRate > r.FalseAlarmRate {
		r.Warnings = append(r.Warnings, fmt.Sprintf("%d normal images support a false alarm rate of %.3f at best, not %.3f: the threshold is the highest they allow",
			r.Images, r.MinFalseAlarmRate, r.FalseAlarmRate))
	}
	if r.Images < data.Count() {
		r.Warnings = append(r.Warnings, fmt.Sprintf("there was time for %d of %d normal images", r.Images, data.Count()))
	}
	return r
}

// withCalibration returns a new model of the same weights with the calibration in its
// metadata, detached from its file.
func withCalibration(m *models.Model, c *calibration.Calibration, r *Recalibration, mse []float64) *models.Model {
	again := detached(m)
	md := &again.Metadata
	decision := c.Decision(r.Measure)
	if before := m.Metadata.Decision; before != nil {
		decision.Backbone = before.Backbone
	}
	decision.CalibratedOn = &models.CalibrationSummary{
		Images: r.Images, Skipped: r.Skipped, SkippedFiles: r.SkippedFiles, Model: m.SHA256, Warnings: r.Warnings,
	}
	md.Decision = &decision
	mean, std := calibration.MeanDeviation(mse)
	md.MeanError, md.StdError = mean, std
	md.Threshold = mean + thresholdDeviations*std
	return again
}
