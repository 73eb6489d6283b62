package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// ErrDiverged is returned when the loss of a training is no longer a number, as it
// happens to one that goes on from a model of enormous weights.
var ErrDiverged = errors.New("the training diverged; go on from another model, or from none")

// adam is what a training has come to: its parameters and Adam's moments of them,
// in ONNX Runtime's tensors. A step's batch comes in parts, whose losses and
// gradients are computed at once by backward and then added up, in the order of
// the parts, by apply. It must be closed.
type adam struct {
	engine     *ort.Engine
	threads    int // of an update
	parameters []models.Parameter
	// now is what the next step starts from, next where it writes; each holds
	// the parameters, the first and the second moments, in that order.
	now, next         []*ort.Tensor
	stepSize, correct *ort.Tensor
	version           *ort.Tensor          // of the parameters; see exporter.VersionName
	update            map[int]*ort.Session // by the number of parts
	parts             []*gradients
	steps             int // taken
}

// gradients is what a part of a batch gives: its share of the batch's loss, and
// that one's gradients.
type gradients struct {
	weight, loss *ort.Tensor
	of           []*ort.Tensor
}

// newAdam starts from those weights with the moments at zero.
func newAdam(engine *ort.Engine, ps []models.Parameter, weights models.StateDict, threads int) (*adam, error) {
	a := &adam{engine: engine, threads: threads, parameters: ps, update: map[int]*ort.Session{}}
	if err := a.allocate(weights); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

func (a *adam) allocate(weights models.StateDict) error {
	for _, t := range []**ort.Tensor{&a.stepSize, &a.correct, &a.version} {
		var err error
		if *t, err = ort.NewTensor(1); err != nil {
			return err
		}
	}
	for range 3 { // parameters, first moments, second moments
		for _, side := range []*[]*ort.Tensor{&a.now, &a.next} {
			if err := appendTensors(side, a.parameters); err != nil {
				return err
			}
		}
	}
	for i, t := range weights.Ordered(a.parameters) {
		copy(a.now[i].Data(), t.Data)
	}
	return nil
}

// appendTensors adds one tensor of each parameter's shape.
func appendTensors(to *[]*ort.Tensor, ps []models.Parameter) error {
	for _, p := range ps {
		t, err := ort.NewTensor(p.Shape...)
		if err != nil {
			return err
		}
		*to = append(*to, t)
	}
	return nil
}

// Close gives all memory and sessions back.
func (a *adam) Close() {
	all := slices.Concat(a.now, a.next, []*ort.Tensor{a.stepSize, a.correct, a.version})
	for _, p := range a.parts {
		all = append(append(all, p.weight, p.loss), p.of...)
	}
	for _, t := range all {
		t.Close()
	}
	for _, s := range a.update {
		s.Close()
	}
}

// prepare makes what steps of so many parts need.
func (a *adam) prepare(parts int) error {
	for len(a.parts) < parts {
		p := &gradients{}
		a.parts = append(a.parts, p)
		var err error
		if p.weight, err = ort.NewTensor(1); err != nil {
			return err
		}
		if p.loss, err = ort.NewTensor(1); err != nil {
			return err
		}
		if err := appendTensors(&p.of, a.parameters); err != nil {
			return err
		}
	}
	if a.update[parts] != nil {
		return nil
	}
	m, err := exporter.UpdateModel(a.parameters, parts, inference.Operators(a.engine))
	if err != nil {
		return err
	}
	a.update[parts], err = newSession(a.engine, m, a.threads)
	return err
}

// newSession loads a step's graph.
func newSession(engine *ort.Engine, m *exporter.StepModel, threads int) (*ort.Session, error) {
	return engine.NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Threads: threads, Spin: true, Kernels: m.Kernels})
}

// weights are the tensors of the parameters as they are now.
func (a *adam) weights() []*ort.Tensor { return a.now[:len(a.parameters)] }

// StateDict copies the parameters out.
func (a *adam) StateDict() models.StateDict {
	var sd models.StateDict
	for i, p := range a.parameters {
		sd = append(sd, models.Tensor{Name: p.Name, Shape: p.Shape, Data: slices.Clone(a.now[i].Data())})
	}
	return sd
}

// backward has a session compute the loss and the gradients of a part, whose share
// of the batch is the weight. The session takes what is seen, the weight and the
// parameters.
func (a *adam) backward(ctx context.Context, session *ort.Session, part int, weight float32, seen ...*ort.Tensor) error {
	p := a.parts[part]
	p.weight.Data()[0] = weight
	inputs := slices.Concat(seen, []*ort.Tensor{p.weight}, a.weights())
	if inference.Operators(a.engine) == exporter.Processor {
		inputs = append(inputs, a.version)
	}
	return session.Run(ctx, inputs, append([]*ort.Tensor{p.loss}, p.of...))
}

// apply takes the step that the first so many parts' gradients make, and returns
// the batch's loss before it. It returns ErrDiverged when that is no number, and
// when the context ends its cause; the parameters are then as they were.
func (a *adam) apply(ctx context.Context, parts int, learningRate float64) (float64, error) {
	loss := 0.0
	for _, p := range a.parts[:parts] {
		loss += float64(p.loss.Data()[0])
	}
	if math.IsNaN(loss) || math.IsInf(loss, 0) {
		return 0, fmt.Errorf("%w: the loss of step %d is %v", ErrDiverged, a.steps+1, loss)
	}
	t := float64(a.steps + 1)
	a.stepSize.Data()[0] = float32(learningRate / (1 - math.Pow(network.Beta1, t)))
	a.correct.Data()[0] = float32(1 / math.Sqrt(1-math.Pow(network.Beta2, t)))
	inputs := append([]*ort.Tensor{a.stepSize, a.correct}, a.now...)
	for _, p := range a.parts[:parts] {
		inputs = append(inputs, p.of...)
	}
	if err := a.update[parts].Run(ctx, inputs, a.next); err != nil {
		return loss, err
	}
	a.now, a.next = a.next, a.now
	a.steps++
	a.version.Data()[0] = float32(a.steps)
	return loss, nil
}
