package inference

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// ErrClosed is returned by a Detector or a Cache that was closed.
var ErrClosed = errors.New("inference: the detector is closed")

// ErrMeasure is returned when metadata that is given with a model decides by a
// measure that the model has not.
var ErrMeasure = errors.New("the metadata does not fit the model")

// ErrNotFinite is returned when what a model says of an image is no finite number,
// as that of one with enormous weights is: neither verdict could be told from it.
var ErrNotFinite = errors.New("the model gives a result that is no finite number; train it anew")

// ErrNoMap is returned when a model gives no anomaly map.
var ErrNoMap = errors.New("the model gives no anomaly map")

// Verdict is what is said of an image. Its JSON is the contract's answer of
// /detect and an entry of the command line's array.
type Verdict struct {
	// ReconstructionError is the value of the measure the model decides by;
	// the image is anomalous when it is above Threshold.
	ReconstructionError float64  `json:"reconstruction_error"`
	Threshold           float64  `json:"threshold"`
	IsAnomaly           bool     `json:"is_anomaly"`
	ClassNames          []string `json:"class_names"`
	// Measure names that measure; MSE is the plain mean squared error.
	Measure string  `json:"measure"`
	MSE     float64 `json:"mse"`
	// ModelSHA256 is the identity of the model file, empty for a model that
	// was not read from one.
	ModelSHA256 string `json:"model_sha256,omitempty"`
}

// Detector is a model ready to judge images. Several goroutines may use it at
// once. It must be closed.
type Detector struct {
	model   *models.Model
	engine  *ort.Engine
	threads int
	with    exporter.Operators

	closing  sync.RWMutex // held for reading by every run
	closed   bool
	making   sync.Mutex // guards sessions
	sessions [kinds]*ort.Session

	keeping sync.Mutex // guards idle
	idle    []*buffers

	file atomic.Pointer[[]byte] // that the model was read from; nil unless kept

	errors, rebuilds queue // of a Scheduler's jobs
}

// NewDetector lowers the model to ONNX and makes a session of it. One image is
// computed by so many threads; 0 means all of the engine's, which judges a
// single image soonest. Where many images are judged at once, 1 judges the most.
func NewDetector(engine *ort.Engine, m *models.Model, threads int) (*Detector, error) {
	return newDetector(engine, m, threads, Operators(engine))
}

// NewExportDetector is NewDetector by the operators of the exported file, which others
// run: its figures are those that the file gives, to the last bit.
func NewExportDetector(engine *ort.Engine, m *models.Model, threads int) (*Detector, error) {
	return newDetector(engine, m, threads, exporter.Portable)
}

func newDetector(engine *ort.Engine, m *models.Model, threads int, with exporter.Operators) (*Detector, error) {
	d := &Detector{model: m, engine: engine, threads: threads, with: with}
	if _, err := d.session(alone); err != nil {
		return nil, err
	}
	return d, nil
}

// Model is the model the detector judges by.
func (d *Detector) Model() *models.Model { return d.model }

// Side is the side of the square image that the network sees, in pixels.
func (d *Detector) Side() int { return d.model.ImageSize }

// Close gives the sessions back once the runs under way have ended. It may be
// called more than once.
func (d *Detector) Close() {
	d.closing.Lock()
	defer d.closing.Unlock()
	d.closed = true
	for _, s := range d.sessions {
		s.Close()
	}
	for _, b := range d.idle {
		b.close()
	}
	d.idle = nil
}

// Detect prepares an image file's bytes and judges it by the model's own
// metadata, or by the metadata given. It returns imagefile.ErrImage or imagefile.ErrTooLarge
// for an image that cannot be used, ErrMeasure and ErrNotFinite.
func (d *Detector) Detect(ctx context.Context, image []byte, meta *models.Metadata, lim imagefile.Limits) (Verdict, error) {
	pixels, err := imagefile.Prepare(image, d.Side(), lim)
	if err != nil {
		return Verdict{}, err
	}
	j, err := d.measure(ctx, pixels)
	if err != nil {
		return Verdict{}, err
	}
	return d.judge(j, meta)
}

// judge makes a verdict of what was measured, by the model's own metadata or by
// the metadata given, which then counts as a whole. It returns ErrMeasure and
// ErrNotFinite.
func (d *Detector) judge(j *job, meta *models.Metadata) (Verdict, error) {
	if meta == nil {
		meta = &d.model.Metadata
	}
	measure, threshold := meta.Measure()
	figure := float64(j.mse)
	if measure != models.MeasureMSE {
		if d.model.Reference == nil {
			return Verdict{}, fmt.Errorf("%w: it decides by %s, which this model does not measure; send the metadata.json of the same training", ErrMeasure, measure)
		}
		figure = float64(j.figure)
	}
	if !models.Finite(float32(figure), j.mse) {
		return Verdict{}, ErrNotFinite
	}
	return Verdict{
		ReconstructionError: figure,
		Threshold:           threshold,
		IsAnomaly:           figure > threshold,
		ClassNames:          meta.Classes(),
		Measure:             measure,
		MSE:                 float64(j.mse),
		ModelSHA256:         d.model.SHA256,
	}, nil
}

// measure computes what the model says of a prepared image.
func (d *Detector) measure(ctx context.Context, pixels []byte) (*job, error) {
	if err := d.fits(pixels); err != nil {
		return nil, err
	}
	j := &job{image: func(dst []float32) { imagefile.Normalize(dst, pixels) }}
	return j, d.run(ctx, alone, []*job{j})
}

// Map gives the anomaly map of a prepared image, side×side values of the measure
// that the model decides by, and the image's own. It returns ErrNoMap for a model
// that decides by its plain error.
func (d *Detector) Map(ctx context.Context, pixels []byte) (values []float32, figure float64, err error) {
	values, j, err := d.mapped(ctx, pixels)
	if err != nil {
		return nil, 0, err
	}
	return values, float64(j.figure), nil
}

func (d *Detector) mapped(ctx context.Context, pixels []byte) ([]float32, *job, error) {
	if err := d.fits(pixels); err != nil {
		return nil, nil, err
	}
	if d.model.Reference == nil {
		return nil, nil, fmt.Errorf("%w: it decides by its plain error; train it anew", ErrNoMap)
	}
	j := &job{image: func(dst []float32) { imagefile.Normalize(dst, pixels) }, anomaly: make([]float32, d.Side()*d.Side())}
	if err := d.run(ctx, mapping, []*job{j}); err != nil {
		return nil, nil, err
	}
	if !models.Finite(j.anomaly...) {
		return nil, nil, ErrNotFinite
	}
	return j.anomaly, j, nil
}

// Score returns the anomaly score that the model decides by, of a prepared
// image (side×side×3 bytes).
func (d *Detector) Score(ctx context.Context, pixels []byte) (float64, error) {
	j, err := d.measure(ctx, pixels)
	if err != nil {
		return 0, err
	}
	return float64(j.figure), nil
}

// members is how many figures the measure is joined of, 0 where it is one figure.
func (d *Detector) members() int {
	if !models.HasPatches(d.model.Reference) {
		return 0
	}
	return len(models.Members(models.HasHeads(d.model.Reference)))
}

// HasMembers reports whether the model decides by a measure that is joined of several
// figures, which Members gives.
func (d *Detector) HasMembers() bool { return d.members() > 0 }

// Members returns the figures that the measure is joined of, of a prepared image, in
// the order of models.Members and before they are standardized; and what the model
// says of the image, the measure and the mean squared error. It returns ErrMeasure for
// a model that decides by another measure.
func (d *Detector) Members(ctx context.Context, pixels []byte) (members []float64, figure, mse float64, err error) {
	if err := d.fits(pixels); err != nil {
		return nil, 0, 0, err
	}
	n := d.members()
	if n == 0 {
		return nil, 0, 0, fmt.Errorf("%w: the measure is one figure", ErrMeasure)
	}
	j := &job{image: func(dst []float32) { imagefile.Normalize(dst, pixels) }, members: make([]float32, n)}
	if err := d.run(ctx, measuring, []*job{j}); err != nil {
		return nil, 0, 0, err
	}
	if !models.Finite(j.members...) || !models.Finite(j.figure, j.mse) {
		return nil, 0, 0, ErrNotFinite
	}
	for _, v := range j.members {
		members = append(members, float64(v))
	}
	return members, float64(j.figure), float64(j.mse), nil
}

// MSE is the mean squared error between a prepared image (side×side×3 bytes)
// and its reconstruction, in 0…1².
func (d *Detector) MSE(ctx context.Context, pixels []byte) (float64, error) {
	j, err := d.measure(ctx, pixels)
	if err != nil {
		return 0, err
	}
	return float64(j.mse), nil
}

// Reconstruct gives what the network makes of a prepared image, in the same
// layout.
func (d *Detector) Reconstruct(ctx context.Context, pixels []byte) ([]byte, error) {
	if err := d.fits(pixels); err != nil {
		return nil, err
	}
	j := job{image: func(dst []float32) { imagefile.Normalize(dst, pixels) }, rebuilt: make([]float32, len(pixels))}
	if err := d.run(ctx, rebuilding, []*job{&j}); err != nil {
		return nil, err
	}
	return quantize(j.rebuilt), nil
}

func (d *Detector) fits(pixels []byte) error {
	if len(pixels) != d.floats() {
		return fmt.Errorf("inference: %d bytes for an image of %d×%d pixels", len(pixels), d.Side(), d.Side())
	}
	return nil
}

// floats is the number of values in one image.
func (d *Detector) floats() int { return models.InputChannels * d.Side() * d.Side() }

// Operators are those that graphs which only run here are lowered to.
func Operators(engine *ort.Engine) exporter.Operators {
	if provider, _ := engine.Provider(); provider == ort.CPU {
		return exporter.Processor
	}
	return exporter.Portable
}
