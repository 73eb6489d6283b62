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

// ErrClosed is returned by a Detector or a Cache that is closed.
var ErrClosed = errors.New("inference: the detector is closed")

// ErrMeasure is returned when metadata passed with an image uses a measure that the
// model cannot compute.
var ErrMeasure = errors.New("the metadata does not fit the model")

// ErrNotFinite is returned when the model's result for an image is not a finite
// number, for example because of very large weights: such a result supports no
// verdict.
var ErrNotFinite = errors.New("the model's result is not a finite number; train the model again")

// ErrNoMap is returned when a model has no anomaly map.
var ErrNoMap = errors.New("the model gives no anomaly map")

// Verdict is the decision on an image. Its JSON is the answer of /detect and an
// entry of the command line's array.
type Verdict struct {
	// ReconstructionError is the anomaly score. The image is anomalous if it is
	// above Threshold. The JSON key is the Python service's; the score is the
	// reconstruction error only if Measure is models.MeasureMSE.
	ReconstructionError float64 `json:"reconstruction_error"`
	// AnomalyScore equals ReconstructionError.
	AnomalyScore float64  `json:"anomaly_score"`
	Threshold    float64  `json:"threshold"`
	IsAnomaly    bool     `json:"is_anomaly"`
	ClassNames   []string `json:"class_names"`
	// Measure is the kind of the anomaly score, one of the models.Measure
	// constants.
	Measure string `json:"measure"`
	// MSE is the mean squared error of the reconstruction.
	MSE float64 `json:"mse"`
	// ModelSHA256 is the SHA-256 of the model file; empty for a model that was not
	// read from a file.
	ModelSHA256 string `json:"model_sha256,omitempty"`
	// Warnings are sentences about the verdict, such as those of
	// models.OverrideWarnings.
	Warnings []string `json:"warnings,omitempty"`
	// Frame is the number of the frame that the verdict is of, from 1: the one with the
	// highest score of a DICOM file of several frames; else 0.
	Frame int `json:"frame,omitempty"`
	// Frames are the verdicts of all frames of such a file, in their order; else nil.
	Frames []FrameVerdict `json:"frames,omitempty"`
}

// Detector judges images with one model. It may be used by several goroutines at
// once and must be closed.
type Detector struct {
	model     *models.Model
	engine    *ort.Engine
	threads   int
	operators exporter.Operators
	region    imagefile.Options // with the model's region, whose mask is read once

	closing sync.RWMutex // read-locked by every run
	closed  bool

	sessionMu sync.Mutex
	sessions  [sessionKinds]*ort.Session // nil until first used

	idleMu sync.Mutex
	idle   []*buffers

	file atomic.Pointer[[]byte] // the model file; nil unless retained

	queues [sessionKinds]queue // jobs of a Scheduler
}

// NewDetector returns a detector for the model. Each image is computed with the
// given number of threads; 0 means the engine's. All threads have the lowest
// latency for a single image, 1 has the highest throughput for concurrent images.
func NewDetector(engine *Engine, m *models.Model, threads int) (*Detector, error) {
	return newDetector(engine, m, threads, Operators(engine))
}

// NewExportDetector is like NewDetector, but uses the operators of the exported
// files, so that its scores have the same bits as the files' scores.
func NewExportDetector(engine *Engine, m *models.Model, threads int) (*Detector, error) {
	return newDetector(engine, m, threads, exporter.Portable)
}

func newDetector(engine *ort.Engine, m *models.Model, threads int, operators exporter.Operators) (*Detector, error) {
	d := &Detector{model: m, engine: engine, threads: threads, operators: operators, region: imagefile.OptionsFor(m.Metadata.Preprocessing, ImageLimits{})}
	if _, err := d.session(scoreSession); err != nil {
		return nil, err
	}
	return d, nil
}

// Model returns the detector's model.
func (d *Detector) Model() *models.Model { return d.model }

// Size returns the width and height of the network's input, in pixels.
func (d *Detector) Size() models.Size { return d.model.Input() }

// Layout returns the layout of images prepared for the model.
func (d *Detector) Layout() imagefile.Layout { return d.ImageOptions(ImageLimits{}).Layout(d.Size()) }

// ImageOptions returns the options with which image files are decoded for the model:
// the limits and the model's preprocessing.
func (d *Detector) ImageOptions(lim ImageLimits) imagefile.Options {
	p := d.model.Metadata.Preprocessing
	if p == nil || p.Region == nil {
		return imagefile.OptionsFor(p, lim)
	}
	o := d.region
	o.Limits = lim
	return o
}

// Close waits for the current runs and releases the sessions. It may be called more
// than once.
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

// Detect decodes an image file and judges it. If meta is not nil, it replaces the
// model's own metadata. Of a DICOM file of several frames, it judges each, and returns the
// verdict of the one with the highest score. The errors are ErrImage, ErrImageTooLarge,
// ErrMeasure and ErrNotFinite, wrapped.
func (d *Detector) Detect(ctx context.Context, image []byte, meta *models.Metadata, lim ImageLimits) (Verdict, error) {
	f, err := d.Open(image, lim)
	if err != nil {
		return Verdict{}, err
	}
	return eachFrame(f, func(i int) (Verdict, error) { return d.DetectFrame(ctx, f, i, meta) })
}

// judge returns the verdict on a finished job by the model's own metadata or by
// meta, which replaces all of it. The errors are ErrMeasure and ErrNotFinite,
// wrapped.
func (d *Detector) judge(j *job, meta *models.Metadata) (Verdict, error) {
	warnings := models.OverrideWarnings(d.model, meta)
	if j.shallow {
		w := d.model.Metadata.Preprocessing.Window
		warnings = append(warnings, fmt.Sprintf("the image has 8 bits per sample and the model's window is %g to %g: judge images of the depth that it was trained on", w[0], w[1]))
	}
	if s := d.tileCalibration().Warning(j.tiles); j.tiles > 0 && s != "" {
		warnings = append(warnings, s)
	}
	if meta == nil {
		meta = &d.model.Metadata
	}
	measure, threshold := meta.Measure()
	score := float64(j.mse)
	if measure != models.MeasureMSE {
		if d.model.Reference == nil {
			return Verdict{}, fmt.Errorf("%w: it decides by %s, which this model cannot compute; send the metadata.json of the same training", ErrMeasure, measure)
		}
		score = float64(j.score)
	}
	if !models.Finite(float32(score), j.mse) {
		return Verdict{}, ErrNotFinite
	}
	return Verdict{
		ReconstructionError: score,
		AnomalyScore:        score,
		Threshold:           threshold,
		IsAnomaly:           score > threshold,
		ClassNames:          meta.Classes(),
		Measure:             measure,
		MSE:                 float64(j.mse),
		ModelSHA256:         d.model.SHA256,
		Warnings:            warnings,
	}, nil
}

// pixelJob returns a job for a prepared image. The pixels must not change before
// the job is done.
func pixelJob(pixels []byte) *job {
	return &job{image: func(dst []float32) { imagefile.Normalize(dst, pixels) }}
}

// mapJob is pixelJob for mapSession. ErrNoMap is returned, wrapped, if the model has
// no anomaly map.
func (d *Detector) mapJob(pixels []byte) (*job, error) {
	if d.model.Reference == nil {
		return nil, fmt.Errorf("%w: it decides by its mean squared error; train it again", ErrNoMap)
	}
	j := pixelJob(pixels)
	j.anomaly = make([]float32, d.Size().Area())
	return j, nil
}

// score runs a prepared image through scoreSession.
func (d *Detector) score(ctx context.Context, pixels []byte) (*job, error) {
	if err := d.checkLength(pixels); err != nil {
		return nil, err
	}
	j := pixelJob(pixels)
	return j, d.run(ctx, scoreSession, []*job{j})
}

// Map returns the anomaly map of a prepared image, one value for each pixel of the input, on
// the scale of the anomaly score, and the image's anomaly score. ErrNoMap is returned, wrapped,
// if the model's measure is the mean squared error.
func (d *Detector) Map(ctx context.Context, pixels []byte) (values []float32, score float64, err error) {
	if err := d.checkLength(pixels); err != nil {
		return nil, 0, err
	}
	j, err := d.mapJob(pixels)
	if err != nil {
		return nil, 0, err
	}
	if err := d.run(ctx, mapSession, []*job{j}); err != nil {
		return nil, 0, err
	}
	if !models.Finite(j.anomaly...) {
		return nil, 0, ErrNotFinite
	}
	return j.anomaly, float64(j.score), nil
}

// Score returns the anomaly score of a prepared image, in the layout of Layout.
func (d *Detector) Score(ctx context.Context, pixels []byte) (float64, error) {
	j, err := d.score(ctx, pixels)
	if err != nil {
		return 0, err
	}
	return float64(j.score), nil
}

// members returns the number of member scores, 0 if the score has no members.
func (d *Detector) members() int {
	if !models.HasPatches(d.model.Reference) {
		return 0
	}
	return len(models.Members(models.HasHeads(d.model.Reference)))
}

// HasMembers reports whether the model combines its score from the member scores
// that Members returns.
func (d *Detector) HasMembers() bool { return d.members() > 0 }

// Members returns the member scores of a prepared image, in the order of
// models.Members and before they are standardized, with its anomaly score and mean
// squared error. ErrMeasure is returned, wrapped, if the score has no members.
func (d *Detector) Members(ctx context.Context, pixels []byte) (members []float64, score, mse float64, err error) {
	if err := d.checkLength(pixels); err != nil {
		return nil, 0, 0, err
	}
	n := d.members()
	if n == 0 {
		return nil, 0, 0, fmt.Errorf("%w: the measure has no members", ErrMeasure)
	}
	j := pixelJob(pixels)
	j.members = make([]float32, n)
	if err := d.run(ctx, memberSession, []*job{j}); err != nil {
		return nil, 0, 0, err
	}
	if !models.Finite(j.members...) || !models.Finite(j.score, j.mse) {
		return nil, 0, 0, ErrNotFinite
	}
	for _, v := range j.members {
		members = append(members, float64(v))
	}
	return members, float64(j.score), float64(j.mse), nil
}

// MSE returns the mean squared error between a prepared image and its reconstruction, with
// values scaled to 0…1.
func (d *Detector) MSE(ctx context.Context, pixels []byte) (float64, error) {
	j, err := d.score(ctx, pixels)
	if err != nil {
		return 0, err
	}
	return float64(j.mse), nil
}

// Reconstruct returns the network's reconstruction of a prepared image: red, green and blue
// of each pixel, one byte each.
func (d *Detector) Reconstruct(ctx context.Context, pixels []byte) ([]byte, error) {
	if err := d.checkLength(pixels); err != nil {
		return nil, err
	}
	j := pixelJob(pixels)
	j.reconstruction = make([]float32, d.floats())
	if err := d.run(ctx, reconstructionSession, []*job{j}); err != nil {
		return nil, err
	}
	return quantize(j.reconstruction), nil
}

func (d *Detector) checkLength(pixels []byte) error {
	if len(pixels) != d.Layout().Bytes() {
		return fmt.Errorf("inference: %d bytes for an image of %v pixels", len(pixels), d.Size())
	}
	return nil
}

// floats returns the number of values of one image.
func (d *Detector) floats() int { return models.InputChannels * d.Size().Area() }
