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

// Map is the shape of a feature map of one image: Channels×H×W.
type Map struct {
	Block, Channels int
	models.Size
}

// Floats returns the number of elements of the map.
func (m Map) Floats() int { return m.Channels * m.Area() }

// MapsOf returns the feature maps of models.HeadTaps for an image of that size, the finest
// first.
func MapsOf(size models.Size) []Map {
	var ms []Map
	for _, t := range models.HeadTaps() {
		ms = append(ms, Map{t.Block, t.Channels, t.Patches(size)})
	}
	return ms
}

// Extractor computes the feature maps of images of one size. Several goroutines may use it,
// each with its own Observer. It must be closed.
type Extractor struct {
	session *ort.Session
	layout  imagefile.Layout
	maps    []Map
}

// New returns an extractor for images of that layout, whose sides must be multiples of 16.
func New(engine *ort.Engine, l imagefile.Layout) (*Extractor, error) {
	m, err := exporter.PatchFeaturesModel(l.Size, l.Masked, inference.Operators(engine))
	if err != nil {
		return nil, err
	}
	session, err := engine.NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Threads: 1, Kernels: m.Kernels})
	if err != nil {
		return nil, err
	}
	return &Extractor{session: session, layout: l, maps: MapsOf(l.Size)}, nil
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
	in, err := ort.NewTensor(1, models.InputChannels, e.layout.H, e.layout.W)
	if err != nil {
		return nil, err
	}
	o := &Observer{extractor: e, in: in}
	for _, m := range e.maps {
		t, err := ort.NewTensor(1, m.Channels, m.H, m.W)
		if err != nil {
			o.Close()
			return nil, err
		}
		o.out = append(o.out, t)
	}
	return o, nil
}

// See returns the feature maps of a prepared image. Maps with an index
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
	// Painter returns a function that returns image i, prepared. It is called
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

// PatchOf returns the index of the patch of m that contains the pixel at x, y of an image of
// that size.
func PatchOf(m Map, size models.Size, x, y int) int {
	in := models.BackboneInputOf(size)
	column := (x*in.Times + in.Times/2 + in.Border.W) * m.W / in.Size.W
	row := (y*in.Times + in.Times/2 + in.Border.H) * m.H / in.Size.H
	return row*m.W + column
}

// Inside returns which patches of m have a pixel that is judged, by the mask of an image of
// that size, as network.Forward.Judge decides. It returns nil for a nil mask.
func Inside(m Map, size models.Size, mask []byte) []bool {
	if mask == nil {
		return nil
	}
	in := models.BackboneInputOf(size)
	// The first and the last patch of each pixel, along one axis. The border repeats the
	// pixels of the edge.
	axis := func(n, border, whole, patches int) (first, last []int) {
		for i := range n {
			from, to := i*in.Times+border, (i+1)*in.Times+border-1
			if i == 0 {
				from = 0
			}
			if i == n-1 {
				to = whole - 1
			}
			first, last = append(first, from*patches/whole), append(last, to*patches/whole)
		}
		return first, last
	}
	left, right := axis(size.W, in.Border.W, in.Size.W, m.W)
	top, bottom := axis(size.H, in.Border.H, in.Size.H, m.H)
	out := make([]bool, m.Area())
	for i, v := range mask {
		if v == 0 {
			continue
		}
		x, y := i%size.W, i/size.W
		for row := top[y]; row <= bottom[y]; row++ {
			for column := left[x]; column <= right[x]; column++ {
				out[row*m.W+column] = true
			}
		}
	}
	return out
}
