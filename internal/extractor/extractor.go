// Package extractor computes the feature maps that a backbone, trained on ImageNet,
// has of prepared images. It defines which feature maps there are and their shapes.
// What is learned or decided from features does not belong here.
package extractor

import (
	"context"
	"slices"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

// Map is the shape of a feature map of one image: Channels×Side×Side.
type Map struct{ Block, Channels, Side int }

// Floats is the number of elements of the map.
func (m Map) Floats() int { return m.Channels * m.Side * m.Side }

// MapsOf returns the feature maps of an image of side×side pixels: those of
// models.HeadTaps, the finest first.
func MapsOf(side int) []Map {
	var ms []Map
	for _, t := range models.HeadTaps() {
		ms = append(ms, Map{t.Block, t.Channels, t.Patches(side)})
	}
	return ms
}

// Extractor computes the feature maps of images of one size. It may be used by several
// goroutines, each with an Observer of its own. It must be closed.
type Extractor struct {
	session *ort.Session
	side    int
	maps    []Map
}

// New returns an extractor for images of side×side pixels, a multiple of 16.
func New(engine *ort.Engine, side int) (*Extractor, error) {
	m, err := exporter.PatchFeaturesModel(side, inference.Operators(engine))
	if err != nil {
		return nil, err
	}
	session, err := engine.NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Threads: 1, Kernels: m.Kernels})
	if err != nil {
		return nil, err
	}
	return &Extractor{session: session, side: side, maps: MapsOf(side)}, nil
}

// Maps returns the feature maps in the order in which Observer.See returns them.
func (e *Extractor) Maps() []Map { return e.maps }

// Close releases the session. No observer may be in use.
func (e *Extractor) Close() { e.session.Close() }

// Observer holds the tensors with which one goroutine uses an Extractor. It must be
// closed.
type Observer struct {
	extractor *Extractor
	in        *ort.Tensor
	out       []*ort.Tensor
}

// Observer returns an observer.
func (e *Extractor) Observer() (*Observer, error) {
	in, err := ort.NewTensor(1, models.InputChannels, e.side, e.side)
	if err != nil {
		return nil, err
	}
	o := &Observer{extractor: e, in: in}
	for _, m := range e.maps {
		t, err := ort.NewTensor(1, m.Channels, m.Side, m.Side)
		if err != nil {
			o.Close()
			return nil, err
		}
		o.out = append(o.out, t)
	}
	return o, nil
}

// See returns the feature maps of a prepared image (side×side×3 bytes). Maps before
// the one with index first are nil.
func (o *Observer) See(ctx context.Context, image []byte, first int) ([][]float32, error) {
	imagefile.Normalize(o.in.Data(), image)
	if err := o.extractor.session.Run(ctx, []*ort.Tensor{o.in}, o.out); err != nil {
		return nil, err
	}
	seen := make([][]float32, len(o.out))
	for i := first; i < len(seen); i++ {
		seen[i] = slices.Clone(o.out[i].Data())
	}
	return seen, nil
}

// Close releases the tensors. The extractor stays open.
func (o *Observer) Close() {
	o.in.Close()
	for _, t := range o.out {
		t.Close()
	}
}

// Request selects what ObserveAll computes.
type Request struct {
	// Images is the number of images.
	Images int
	// First is the index of the first feature map to keep; earlier ones are nil.
	First int
	// Until is when to stop, once AtLeast images are done; zero means never.
	Until   time.Time
	AtLeast int
	// Painter returns a function that returns image i. It is called once in each
	// goroutine, and the function may reuse its memory for the next image.
	Painter func() func(i int) ([]byte, error)
}

// ObserveAll returns the feature maps of the images, by image and map; nil for images
// that there was no time for.
func (e *Extractor) ObserveAll(ctx context.Context, pool workers.Pool, r Request) ([][][]float32, error) {
	seen := make([][][]float32, r.Images)
	threads := max(pool.Threads, 1)
	err := pool.Each(ctx, threads, func(running context.Context, worker int) error {
		observer, err := e.Observer()
		if err != nil {
			return err
		}
		defer observer.Close()
		paint := r.Painter()
		for i := worker; i < r.Images; i += threads {
			if i >= r.AtLeast && !r.Until.IsZero() && time.Now().After(r.Until) {
				return nil
			}
			image, err := paint(i)
			if err != nil {
				return err
			}
			if seen[i], err = observer.See(running, image, r.First); err != nil {
				return err
			}
		}
		return nil
	})
	return seen, err
}

// PatchOf returns the index, along one axis, of the patch of map m that contains pixel
// x of an image of that side.
func PatchOf(m Map, side, x int) int {
	in := models.BackboneInputOf(side)
	return (x*in.Times + in.Times/2 + in.Border) * m.Side / in.Side
}
