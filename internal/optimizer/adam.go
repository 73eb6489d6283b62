// Package optimizer takes the steps of Adam in ONNX Runtime, for the autoencoder and
// for the defect heads alike. What is trained, on which data and for how long, is the
// caller's.
package optimizer

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

// Adam holds the parameters of a network and their first and second moments in ONNX
// Runtime's tensors. A batch comes in micro-batches: Backward computes the loss and
// the gradients of one, several at once, and Apply adds them up in their order and
// takes the step. It must be closed.
type Adam struct {
	engine     *ort.Engine
	threads    int // of an update
	parameters []models.Parameter
	// now is read by the next step and next is written by it. Both hold the
	// parameters, the first moments and the second moments, in that order.
	now, next         []*ort.Tensor
	stepSize, correct *ort.Tensor
	version           *ort.Tensor          // of the parameters; see exporter.VersionName
	update            map[int]*ort.Session // by the number of micro-batches
	parts             []*gradients
	steps             int // taken
}

// gradients are the results of a micro-batch: its share of the batch's loss, and the
// gradients of that share.
type gradients struct {
	weight, loss *ort.Tensor
	of           []*ort.Tensor
}

// New returns an Adam that starts from the weights with both moments at zero, and
// updates with that number of threads.
func New(engine *ort.Engine, ps []models.Parameter, weights models.StateDict, threads int) (*Adam, error) {
	a := &Adam{engine: engine, threads: threads, parameters: ps, update: map[int]*ort.Session{}}
	if err := a.allocate(weights); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

func (a *Adam) allocate(weights models.StateDict) error {
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

// Close releases all tensors and sessions.
func (a *Adam) Close() {
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

// Prepare allocates what a step of that number of micro-batches needs.
func (a *Adam) Prepare(parts int) error {
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
	a.update[parts], err = NewSession(a.engine, m, a.threads)
	return err
}

// NewSession returns a session of a training step's graph.
func NewSession(engine *ort.Engine, m *exporter.SessionModel, threads int) (*ort.Session, error) {
	return engine.NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Threads: threads, Spin: true, Kernels: m.Kernels})
}

// Steps returns the number of steps taken.
func (a *Adam) Steps() int { return a.steps }

// Gradients returns the gradients that Backward computed for a micro-batch, in the
// order of the parameters.
func (a *Adam) Gradients(part int) []*ort.Tensor { return a.parts[part].of }

// weights returns the tensors of the current parameters.
func (a *Adam) weights() []*ort.Tensor { return a.now[:len(a.parameters)] }

// StateDict returns a copy of the parameters.
func (a *Adam) StateDict() models.StateDict {
	var sd models.StateDict
	for i, p := range a.parameters {
		sd = append(sd, models.Tensor{Name: p.Name, Shape: p.Shape, Data: slices.Clone(a.now[i].Data())})
	}
	return sd
}

// Backward runs a gradient session on a micro-batch. The session's inputs are inputs,
// the weight, which is the micro-batch's share of the batch, and the parameters.
// Different micro-batches may run at the same time.
func (a *Adam) Backward(ctx context.Context, session *ort.Session, part int, weight float32, inputs ...*ort.Tensor) error {
	p := a.parts[part]
	p.weight.Data()[0] = weight
	inputs = slices.Concat(inputs, []*ort.Tensor{p.weight}, a.weights())
	if inference.Operators(a.engine) == exporter.Processor {
		inputs = append(inputs, a.version)
	}
	return session.Run(ctx, inputs, append([]*ort.Tensor{p.loss}, p.of...))
}

// Apply takes the step of the gradients of the first parts micro-batches, and returns
// the batch's loss before the step. It returns ErrDiverged when the loss is not
// finite, and the context's cause when ctx ends; the parameters are then unchanged.
func (a *Adam) Apply(ctx context.Context, parts int, learningRate float64) (float64, error) {
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
