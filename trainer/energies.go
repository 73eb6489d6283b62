package trainer

import (
	"context"
	"slices"
	"time"

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

// observe gives the features of n images at the first so many scales, by image.
// Beyond the least it leaves out images (nil) that there is no time for before
// until, which is zero for as long as it takes. Each goroutine gets a function from
// painter, which gives image i and may use its memory again for the next.
func (e *energies) observe(ctx context.Context, o Options, n, least, scales int, until time.Time, painter func() func(i int) ([]byte, error)) ([][][]float32, error) {
	seen := make([][][]float32, n)
	err := o.inParallel(ctx, o.Threads, func(running context.Context, worker int) error {
		observer, err := e.observer()
		if err != nil {
			return err
		}
		defer observer.Close()
		paint := painter()
		for i := worker; i < n; i += o.Threads {
			if i >= least && !until.IsZero() && time.Now().After(until) {
				return nil
			}
			image, err := paint(i)
			if err != nil {
				return err
			}
			if seen[i], err = observer.see(running, image, scales); err != nil {
				return err
			}
		}
		return nil
	})
	return seen, err
}

// Close gives the memory back; the session stays.
func (o *observer) Close() {
	o.in.Close()
	closeAll(o.out)
}
