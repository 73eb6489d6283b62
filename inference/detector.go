package inference

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// ErrClosed is returned by a Detector that was closed.
var ErrClosed = errors.New("inference: the detector is closed")

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
	session *ort.Session
	full    *ort.Session // also gives the reconstruction; made when first asked for
	engine  *ort.Engine
	onnx    []byte
	threads int
	memory  sync.Pool // *buffers

	closing sync.RWMutex // held for reading by every run
	closed  bool
	once    sync.Mutex
}

// buffers is the memory of one run.
type buffers struct{ image, errors *ort.Tensor }

// NewDetector lowers the model to ONNX and makes a session of it. One image is
// computed by so many threads; 0 means all of the engine's, which judges a
// single image soonest. Where many images are judged at once, 1 judges the most.
func NewDetector(engine *ort.Engine, m *models.Model, threads int) (*Detector, error) {
	onnx, err := exporter.InferenceModel(m)
	if err != nil {
		return nil, err
	}
	session, err := engine.NewSession(onnx, []string{network.ImageName}, []string{network.ErrorName}, ort.SessionOptions{Threads: threads})
	if err != nil {
		return nil, err
	}
	return &Detector{model: m, session: session, engine: engine, onnx: onnx, threads: threads}, nil
}

// Model is the model the detector judges by.
func (d *Detector) Model() *models.Model { return d.model }

// Side is the side of the square image that the network sees, in pixels.
func (d *Detector) Side() int { return d.model.ImageSize }

// Close gives the session back once the runs under way have ended. It may be
// called more than once.
func (d *Detector) Close() {
	d.closing.Lock()
	defer d.closing.Unlock()
	d.closed = true
	d.session.Close()
	d.full.Close()
	for {
		b, ok := d.memory.Get().(*buffers)
		if !ok {
			return
		}
		b.close()
	}
}

// Detect prepares an image file's bytes and judges it by the model's own
// metadata, or by the metadata given. It returns ErrImage or ErrImageTooLarge
// for an image that cannot be used.
func (d *Detector) Detect(ctx context.Context, image []byte, meta *models.Metadata, lim ImageLimits) (Verdict, error) {
	pixels, err := Prepare(image, d.Side(), lim)
	if err != nil {
		return Verdict{}, err
	}
	mse, err := d.MSE(ctx, pixels)
	if err != nil {
		return Verdict{}, err
	}
	return d.Judge(mse, meta), nil
}

// Judge makes a verdict of a measured error, by the model's own metadata or by
// the metadata given, which then counts as a whole.
func (d *Detector) Judge(mse float64, meta *models.Metadata) Verdict {
	if meta == nil {
		meta = &d.model.Metadata
	}
	measure, threshold := meta.Measure()
	return Verdict{
		ReconstructionError: mse,
		Threshold:           threshold,
		IsAnomaly:           mse > threshold,
		ClassNames:          meta.Classes(),
		Measure:             measure,
		MSE:                 mse,
		ModelSHA256:         d.model.SHA256,
	}
}

// MSE is the mean squared error between a prepared image (side×side×3 bytes)
// and its reconstruction, in 0…1².
func (d *Detector) MSE(ctx context.Context, pixels []byte) (float64, error) {
	d.closing.RLock()
	defer d.closing.RUnlock()
	if d.closed {
		return 0, ErrClosed
	}
	b, err := d.buffers()
	if err != nil {
		return 0, err
	}
	defer d.memory.Put(b)
	if len(pixels) != len(b.image.Data()) {
		return 0, fmt.Errorf("inference: %d bytes for an image of %d×%d pixels", len(pixels), d.Side(), d.Side())
	}
	Normalize(b.image.Data(), pixels)
	if err := d.session.Run(ctx, []*ort.Tensor{b.image}, []*ort.Tensor{b.errors}); err != nil {
		return 0, err
	}
	return float64(b.errors.Data()[0]), nil
}

// Reconstruct gives what the network makes of a prepared image, in the same
// layout.
func (d *Detector) Reconstruct(ctx context.Context, pixels []byte) ([]byte, error) {
	d.closing.RLock()
	defer d.closing.RUnlock()
	if d.closed {
		return nil, ErrClosed
	}
	session, err := d.reconstructing()
	if err != nil {
		return nil, err
	}
	b, err := d.buffers()
	if err != nil {
		return nil, err
	}
	defer d.memory.Put(b)
	out, err := ort.NewTensor(b.image.Shape()...)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	Normalize(b.image.Data(), pixels)
	if err := session.Run(ctx, []*ort.Tensor{b.image}, []*ort.Tensor{out}); err != nil {
		return nil, err
	}
	return quantize(out.Data()), nil
}

func (d *Detector) reconstructing() (*ort.Session, error) {
	d.once.Lock()
	defer d.once.Unlock()
	var err error
	if d.full == nil {
		d.full, err = d.engine.NewSession(d.onnx, []string{network.ImageName}, []string{network.ReconstructionName}, ort.SessionOptions{Threads: d.threads})
	}
	return d.full, err
}

func (d *Detector) buffers() (*buffers, error) {
	if b, ok := d.memory.Get().(*buffers); ok {
		return b, nil
	}
	image, err := ort.NewTensor(1, models.InputChannels, d.Side(), d.Side())
	if err != nil {
		return nil, err
	}
	errors, err := ort.NewTensor(1)
	if err != nil {
		image.Close()
		return nil, err
	}
	return &buffers{image, errors}, nil
}

func (b *buffers) close() {
	b.image.Close()
	b.errors.Close()
}
