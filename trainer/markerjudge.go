package trainer

import (
	"context"
	"slices"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// judge sets the peaks of the images that this marker has not learnt from: twice
// its highest logit, as the sum of both markers is what counts.
func (t *markerTraining) judge(ctx context.Context, tensors models.StateDict, peaks []float64) error {
	model, err := exporter.MarkerModel(t.data.Side, t.number)
	if err != nil {
		return err
	}
	session, err := t.engine.NewSession(model.ONNX, model.Inputs, model.Outputs, ort.SessionOptions{Threads: 1})
	if err != nil {
		return err
	}
	defer session.Close()
	var inputs []*ort.Tensor
	defer func() {
		for _, x := range inputs {
			x.Close()
		}
	}()
	add := func(data []float32, shape ...int) error {
		x, err := ort.NewTensor(shape...)
		if err == nil {
			copy(x.Data(), data)
			inputs = append(inputs, x)
		}
		return err
	}
	p := t.scales[0].Places
	if err := add(nil, 1, models.MarkerChannels(t.data.Side), p, p); err != nil {
		return err
	}
	for _, w := range tensors {
		if err := add(w.Data, w.Shape...); err != nil {
			return err
		}
	}
	logits, err := ort.NewTensor(1, 1, p, p)
	if err != nil {
		return err
	}
	defer logits.Close()
	for k := range t.order {
		if k%models.Markers == t.number {
			continue
		}
		assemble(inputs[0].Data(), t.good(k).seen, t.fold(k), t.scales)
		if err := session.Run(ctx, inputs, []*ort.Tensor{logits}); err != nil {
			return err
		}
		peaks[k] = 2 * float64(slices.Max(logits.Data()))
	}
	return nil
}
