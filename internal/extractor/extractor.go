// Package extractor sees images through a backbone that was trained on ImageNet: it
// says which feature maps there are, of which sizes, and computes them of prepared
// images. What features mean, and what is decided by them, is not told here.
package extractor

import (
	"context"
	"slices"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// Map is the shape of a feature map of one image: Channels×Side×Side.
type Map struct{ Block, Channels, Side int }

// Floats is the number of elements of the map.
func (m Map) Floats() int { return m.Channels * m.Side * m.Side }

// MapsOf are the feature maps of a model's images of that side, the finest first:
// those of models.HeadTaps.
func MapsOf(side int) []Map {
	var ms []Map
	for _, t := range models.HeadTaps() {
		ms = append(ms, Map{t.Block, t.Channels, t.Places(side)})
	}
	return ms
}

// Extractor computes feature maps of images of one size. Several goroutines may make
// observers of it at once. It must be closed.
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

// Maps are the feature maps, in the order in which Observer.See gives them.
func (e *Extractor) Maps() []Map { return e.maps }

// Close gives the session back. It must not be called while an observer sees.
func (e *Extractor) Close() { e.session.Close() }

// Observer is one goroutine's memory for an Extractor. It must be closed.
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

// See returns the feature maps of a prepared image (side×side×3 bytes), from the map
// of number first on; those before are nil.
func (o *Observer) See(ctx context.Context, image []byte, first int) ([][]float32, error) {
	inference.Normalize(o.in.Data(), image)
	if err := o.extractor.session.Run(ctx, []*ort.Tensor{o.in}, o.out); err != nil {
		return nil, err
	}
	seen := make([][]float32, len(o.out))
	for i := first; i < len(seen); i++ {
		seen[i] = slices.Clone(o.out[i].Data())
	}
	return seen, nil
}

// Close gives the memory back; the extractor stays.
func (o *Observer) Close() {
	o.in.Close()
	for _, t := range o.out {
		t.Close()
	}
}

// PatchOf returns the patch, along an axis, of map m that pixel x of an image of that
// side lies in.
func PatchOf(m Map, side, x int) int {
	in := models.BackboneInputOf(side)
	return (x*in.Times + in.Times/2 + in.Border) * m.Side / in.Side
}
