package trainer

import (
	"context"
	"slices"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// energies sees the features of images' places; see models.NormalityScale. One
// session serves any number of observers. It must be closed.
type energies struct {
	session *ort.Session
	side    int
	scales  []models.NormalityScale
}

func newEnergies(engine *ort.Engine, side int) (*energies, error) {
	onnx, names, err := exporter.EnergiesModel(side)
	if err != nil {
		return nil, err
	}
	session, err := engine.NewSession(onnx, []string{network.ImageName}, names, ort.SessionOptions{Threads: 1})
	if err != nil {
		return nil, err
	}
	return &energies{session, side, models.NormalityScales(side)}, nil
}

func (e *energies) Close() { e.session.Close() }

// observer is one goroutine's memory for what energies see. It must be closed.
type observer struct {
	*energies
	in  *ort.Tensor
	out []*ort.Tensor
}

func (e *energies) observer() (*observer, error) {
	in, err := ort.NewTensor(1, models.InputChannels, e.side, e.side)
	if err != nil {
		return nil, err
	}
	o := &observer{energies: e, in: in}
	for _, s := range e.scales {
		t, err := ort.NewTensor(1, s.Features(), s.Places, s.Places)
		if err != nil {
			o.Close()
			return nil, err
		}
		o.out = append(o.out, t)
	}
	return o, nil
}

// see gives a prepared image's features at the first so many scales: D×P×P
// numbers each.
func (o *observer) see(ctx context.Context, image []byte, scales int) ([][]float32, error) {
	inference.Normalize(o.in.Data(), image)
	if err := o.session.Run(ctx, []*ort.Tensor{o.in}, o.out); err != nil {
		return nil, err
	}
	seen := make([][]float32, scales)
	for i := range seen {
		seen[i] = slices.Clone(o.out[i].Data())
	}
	return seen, nil
}

// Close gives the memory back; the session stays.
func (o *observer) Close() {
	o.in.Close()
	for _, t := range o.out {
		t.Close()
	}
}
