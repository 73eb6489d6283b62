package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/models"
)

// ErrTooFewCalibrationImages is returned, wrapped, for fewer normal images than a threshold can
// be drawn from.
var ErrTooFewCalibrationImages = calibration.ErrTooFew

// Measurer measures the members of a model's measure.
type Measurer interface {
	// Members gives the raw value of each member, always as many in the same order,
	// of a prepared image (side×side×3 bytes): a logarithm of a squared distance,
	// before offset and slope.
	Members(ctx context.Context, pixels []byte) ([]float64, error)
}

// gauge is how a model is measured. A model whose members cannot be, has no Measurer:
// then its threshold is all that can be drawn anew.
type gauge struct {
	// score gives the value of the measure that the model decides by, mse the plain
	// mean squared error.
	score, mse func(ctx context.Context, pixels []byte) (float64, error)
	members    Measurer
	// weights are those of the members in the joined deviation; nil for equal ones.
	weights []float64
	// standardize gives the model other offsets and slopes of its members. It must
	// replace tensors rather than change them: other models share them.
	standardize func(m *models.Model, offsets, slopes []float32) error
}

// gaugeOf is the gauge of a detector.
func gaugeOf(d *inference.Detector) gauge {
	g := gauge{score: d.Score, mse: d.MSE}
	if d.HasMembers() {
		join := d.Model().Reference[len(d.Model().Reference)-3:]
		for _, w := range join[2].Data {
			g.weights = append(g.weights, float64(w))
		}
		g.members, g.standardize = memberGauge{d}, standardize
	}
	return g
}

// memberGauge measures the members of a detector's measure.
type memberGauge struct{ *inference.Detector }

// Members gives the figures that the measure is joined of.
func (g memberGauge) Members(ctx context.Context, pixels []byte) ([]float64, error) {
	members, _, _, err := g.Detector.Members(ctx, pixels)
	return members, err
}

// standardize gives the model other offsets and slopes of its members: the last but
// two and the last but one of its tensors.
func standardize(m *models.Model, offsets, slopes []float32) error {
	m.Reference = slices.Clone(m.Reference)
	at := len(m.Reference) - 3
	for i, data := range [][]float32{offsets, slopes} {
		t := &m.Reference[at+i]
		if len(t.Data) != len(data) {
			return fmt.Errorf("trainer: %d numbers for %s of shape %v", len(data), t.Name, t.Shape)
		}
		t.Data = data
	}
	return nil
}

// Recalibration tells what a calibration on other normal images came to.
type Recalibration struct {
	Measure string `json:"measure"`
	// Images is how many images were measured, Skipped how many could not be read.
	Images       int                  `json:"images"`
	Skipped      int                  `json:"skipped"`
	SkippedFiles []models.SkippedFile `json:"skipped_files,omitempty"`
	// Before and After are the thresholds.
	Before float64 `json:"threshold_before"`
	After  float64 `json:"threshold_after"`
	// FalseAlarmRate is what After was drawn for, and MinFalseAlarmRate the lowest rate
	// that so many images can promise.
	FalseAlarmRate    float64 `json:"false_alarm_rate"`
	MinFalseAlarmRate float64 `json:"supported_rate"`
	// AboveBefore is the share of the images above the threshold that was.
	AboveBefore calibration.Share `json:"above_threshold_before"`
	// Shift is how far the images are from those of the calibration that was; nil
	// where the model does not carry its scores.
	Shift    *calibration.Shift `json:"shift,omitempty"`
	Warnings []string           `json:"warnings,omitempty"`
}

// LoadCalibrationImages reads normal images to calibrate on, resized to o.ImageSize, as Load
// does. It returns Load's errors, and ErrTooFewCalibrationImages, before any is decoded where
// there are too few files.
func LoadCalibrationImages(ctx context.Context, engine *ort.Engine, src *dataset.Source, o Options) (*dataset.Dataset, error) {
	o = o.forCalibration(engine)
	if n := src.Images(); n > 0 && n < calibration.MinImages {
		return nil, tooFew(n, 0)
	}
	data, err := dataset.Load(ctx, src, o.dataset())
	if err != nil {
		return nil, err
	}
	if n := data.Len(); n < calibration.MinImages {
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

// forCalibration fills in defaults that no training settled.
func (o Options) forCalibration(engine *ort.Engine) Options {
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

// Recalibrate draws a model's threshold anew, and offsets and slopes of the members
// of its measure where those can be measured, from normal images that it has not
// learnt from, of the model's image size. Mean, standard deviation and threshold of
// the mean squared error are those of the images, too. The model that it gives is
// another one; m stays as it is, and they share weights. The same images give the
// same model.
//
// Of the options, Threads, Niceness and Seed count as in a training, and
// FalseAlarmRate, which 0 leaves at the model's own. When MaxTime is over, the images
// that were measured by then count, eight at least.
//
// It returns ErrTooFewCalibrationImages, ErrFalseAlarmRate, inference.ErrNotFinite and the
// context's cause when that ends first.
func Recalibrate(ctx context.Context, engine *ort.Engine, m *models.Model, data *dataset.Dataset, o Options) (*models.Model, *Recalibration, error) {
	d, err := inference.NewDetector(engine, m, 1)
	if err != nil {
		return nil, nil, err
	}
	defer d.Close()
	return recalibrate(ctx, m, data, gaugeOf(d), o.forCalibration(engine))
}

func recalibrate(ctx context.Context, m *models.Model, data *dataset.Dataset, g gauge, o Options) (*models.Model, *Recalibration, error) {
	if o.FalseAlarmRate == 0 {
		o.FalseAlarmRate = DefaultFalseAlarmRate
		if d := m.Metadata.Decision; d != nil && d.FalseAlarmRate > 0 && d.FalseAlarmRate < 1 {
			o.FalseAlarmRate = d.FalseAlarmRate
		}
	}
	if !(o.FalseAlarmRate > 0 && o.FalseAlarmRate < 1) {
		return nil, nil, fmt.Errorf("%w: %v, expected a number between 0 and 1", ErrFalseAlarmRate, o.FalseAlarmRate)
	}
	measure, before := m.Metadata.Measure()
	seen, err := g.measure(ctx, measure, data, o)
	if err != nil {
		return nil, nil, err
	}
	var c *calibration.Calibration
	if seen.members != nil {
		c, err = calibration.Fit(seen.members, g.weights, o.FalseAlarmRate)
	} else {
		c, err = calibration.FitScores(seen.scores, o.FalseAlarmRate)
	}
	if err != nil {
		return nil, nil, err
	}
	r := &Recalibration{
		Measure: measure, Images: len(seen.scores), Skipped: len(data.Skipped),
		SkippedFiles: data.Skipped[:min(len(data.Skipped), maxNamedSkips)],
		Before:       before, After: c.Threshold, FalseAlarmRate: c.FalseAlarmRate, MinFalseAlarmRate: c.MinFalseAlarmRate,
		AboveBefore: calibration.ShareAbove(seen.scores, before),
	}
	if ref, ok := calibration.ReferenceOf(m.Metadata.Decision); ok {
		shift := ref.Compare(seen.scores)
		r.Shift = &shift
	}
	if r.MinFalseAlarmRate > r.FalseAlarmRate {
		r.Warnings = append(r.Warnings, fmt.Sprintf("%d normal images support a false alarm rate of %.3f at best, not %.3f: the threshold is the highest they allow",
			r.Images, r.MinFalseAlarmRate, r.FalseAlarmRate))
	}
	if r.Images < data.Len() {
		r.Warnings = append(r.Warnings, fmt.Sprintf("there was time for %d of %d normal images", r.Images, data.Len()))
	}
	decision := c.Decision(measure)
	if before := m.Metadata.Decision; before != nil {
		decision.Backbone = before.Backbone
	}
	decision.CalibratedOn = &models.CalibrationSummary{
		Images: r.Images, Skipped: r.Skipped, SkippedFiles: r.SkippedFiles, Model: m.SHA256, Warnings: r.Warnings,
	}
	again := described(m)
	again.Metadata.Decision = &decision
	mean, std := calibration.MeanDeviation(seen.errors)
	again.Metadata.MeanError, again.Metadata.StdError = mean, std
	again.Metadata.Threshold = mean + thresholdDeviations*std
	if seen.members != nil {
		if err := g.standardize(again, c.Offsets, c.Slopes); err != nil {
			return nil, nil, err
		}
		// Its shares are of scores that the model does not give any more.
		again.Metadata.Detectability = nil
	}
	return again, r, nil
}

// described is another model of the same weights, which belongs to no file, and whose
// metadata says what the network is, whatever the model's file said or left out.
func described(m *models.Model) *models.Model {
	again := *m
	again.Format, again.SHA256 = "", ""
	md := &again.Metadata
	md.ModelType, md.ImageSize, md.FormatVersion = models.ModelType, m.ImageSize, models.FormatVersion
	md.Architecture, md.Preprocessing = &again.Architecture, models.StandardPreprocessing()
	md.ClassNames, md.Files = m.Metadata.Classes(), nil
	return &again
}

// seen is what was measured of images.
type seen struct {
	scores, errors []float64
	members        [][]float64 // nil where they cannot be measured
}

// measure measures the images, each with one thread, as many at a time as the options
// say, in the order of the seed: when the time is over those that are done count, eight
// at least.
func (g gauge) measure(ctx context.Context, measure string, data *dataset.Dataset, o Options) (seen, error) {
	order := streams.New(o.Seed, streams.Calibration).Perm(data.Len())
	s := seen{scores: make([]float64, len(order)), errors: make([]float64, len(order))}
	if g.members != nil {
		s.members = make([][]float64, len(order))
	}
	var until time.Time
	if o.MaxTime > 0 {
		until = time.Now().Add(o.MaxTime)
	}
	var next atomic.Int64
	err := o.workers().Each(ctx, o.Threads, func(running context.Context, _ int) error {
		var buffer []byte
		for {
			if running.Err() != nil {
				return context.Cause(running)
			}
			if !until.IsZero() && next.Load() >= calibration.MinImages && time.Now().After(until) {
				return nil
			}
			i := int(next.Add(1)) - 1
			if i >= len(order) {
				return nil
			}
			image, err := data.Image(order[i], &buffer)
			if err != nil {
				return err
			}
			if err := g.one(running, measure, image, i, &s); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return seen{}, err
	}
	// Every image whose number was taken was measured.
	n := min(int(next.Load()), len(order))
	s.scores, s.errors = s.scores[:n], s.errors[:n]
	if s.members != nil {
		s.members = s.members[:n]
	}
	return s, nil
}

// one measures an image into place i.
func (g gauge) one(ctx context.Context, measure string, image []byte, i int, s *seen) (err error) {
	if s.errors[i], err = g.mse(ctx, image); err != nil {
		return err
	}
	s.scores[i] = s.errors[i]
	if measure != models.MeasureMSE {
		if s.scores[i], err = g.score(ctx, image); err != nil {
			return err
		}
	}
	values := []float64{s.errors[i], s.scores[i]}
	if s.members != nil {
		if s.members[i], err = g.members.Members(ctx, image); err != nil {
			return err
		}
		values = append(values, s.members[i]...)
	}
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return inference.ErrNotFinite
		}
	}
	return nil
}
