// Package extractor computes feature maps of prepared images with the embedded backbone,
// which was trained on ImageNet, and defines the shapes of the feature maps.
//
// The package must not learn or decide anything from features; see the packages heads,
// patches and decision.
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

// Floats returns the number of elements of the map.
func (m Map) Floats() int { return m.Channels * m.Side * m.Side }

// MapsOf returns the feature maps of models.HeadTaps for an image of side×side pixels, the
// finest first.
func MapsOf(side int) []Map {
	var ms []Map
	for _, t := range models.HeadTaps() {
		ms = append(ms, Map{t.Block, t.Channels, t.Patches(side)})
	}
	return ms
}

// Extractor computes the feature maps of images of one size. Several goroutines may use it,
// each with its own Observer. It must be closed.
type Extractor struct {
	session *ort.Session
	side    int
	maps    []Map
}

// New returns an extractor for images of side×side pixels. side must be a multiple of 16.
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

// Maps returns the shapes of the feature maps in the order of Observer.See.
func (e *Extractor) Maps() []Map { return e.maps }

// Close releases the session. No Observer may be in use.
func (e *Extractor) Close() { e.session.Close() }

// Observer has the input and output tensors of one goroutine. It must be closed.
type Observer struct {
	extractor *Extractor
	in        *ort.Tensor
	out       []*ort.Tensor
}

// Observer returns a new Observer.
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

// See returns the feature maps of a prepared image of side×side×3 bytes. Maps with an index
// below first are nil. The maps are copies.
func (o *Observer) See(ctx context.Context, image []byte, first int) ([][]float32, error) {
	imagefile.Normalize(o.in.Data(), image)
	if err := o.extractor.session.Run(ctx, []*ort.Tensor{o.in}, o.out); err != nil {
		return nil, err
	}
	maps := make([][]float32, len(o.out))
	for i := first; i < len(maps); i++ {
		maps[i] = slices.Clone(o.out[i].Data())
	}
	return maps, nil
}

// Close releases the tensors, and not the Extractor.
func (o *Observer) Close() {
	o.in.Close()
	for _, t := range o.out {
		t.Close()
	}
}

// Request describes the images of ObserveAll.
type Request struct {
	// Images is the number of images.
	Images int
	// First is the index of the first feature map to return; earlier ones are nil.
	First int
	// Until is the time after which no image is started, except the first AtLeast
	// images. Zero means no limit.
	Until   time.Time
	AtLeast int
	// Painter returns a function that returns image i, of side×side×3 bytes. It is called
	// once in each goroutine. The function may reuse the memory of the previous image.
	Painter func() func(i int) ([]byte, error)
}

// ObserveAll returns the feature maps by image and map, computed on the pool's threads. The
// maps of images not started before Until are nil.
func (e *Extractor) ObserveAll(ctx context.Context, pool workers.Pool, r Request) ([][][]float32, error) {
	maps := make([][][]float32, r.Images)
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
			if maps[i], err = observer.See(running, image, r.First); err != nil {
				return err
			}
		}
		return nil
	})
	return maps, err
}

// PatchOf returns the index, along one axis, of the patch of m that contains pixel x of an
// image of side×side pixels.
func PatchOf(m Map, side, x int) int {
	in := models.BackboneInputOf(side)
	return (x*in.Times + in.Times/2 + in.Border) * m.Side / in.Side
}
