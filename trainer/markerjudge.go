package trainer

import (
	"context"
	"slices"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// judge sets the peaks of the images that this marker has not learnt from: twice
// its highest logit, as the sum of both markers is what counts.
func (t *markerTraining) judge(ctx context.Context, tensors models.StateDict, peaks []float64) error {
	model, err := exporter.MarkerModel(t.data.Side, t.number, inference.Operators(t.engine))
	if err != nil {
		return err
	}
	session, err := newSession(t.engine, model, 1)
	if err != nil {
		return err
	}
	defer session.Close()
	inputs, err := seenTensors(t.scales, 1)
	if err != nil {
		return err
	}
	defer func() { closeAll(inputs) }()
	for _, w := range tensors {
		x, err := ort.NewTensor(w.Shape...)
		if err != nil {
			return err
		}
		copy(x.Data(), w.Data)
		inputs = append(inputs, x)
	}
	p := t.scales[0].Places
	logits, err := ort.NewTensor(1, 1, p, p)
	if err != nil {
		return err
	}
	defer logits.Close()
	for k := range t.order {
		if k%models.Markers == t.number {
			continue
		}
		show(inputs[:len(t.scales)], 0, t.good(k).seen, t.fold(k))
		if err := session.Run(ctx, inputs, []*ort.Tensor{logits}); err != nil {
			return err
		}
		peaks[k] = 2 * float64(slices.Max(logits.Data()))
	}
	return nil
}
