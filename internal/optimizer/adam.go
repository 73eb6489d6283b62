// Package optimizer runs Adam (Kingma and Ba, 2015) in ONNX Runtime, for the autoencoder
// and the defect heads. Networks, data and the number of steps do not belong here.
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

// ErrDiverged is returned when the loss of a training is not finite, for example because
// the training started from a model with enormous weights.
var ErrDiverged = errors.New("the training diverged; go on from another model, or from none")

// Adam holds the parameters of a network and their first and second moments as tensors
// of ONNX Runtime. A batch consists of micro-batches: Backward computes the loss and the
// gradients of one, and Apply adds them up in a fixed order and takes the step. Adam must
// be closed.
type Adam struct {
	engine     *ort.Engine
	threads    int // of the update session
	parameters []models.Parameter
	// A step reads now, writes next and swaps both. Each holds the parameters, the first
	// moments and the second moments, in this order.
	now, next         []*ort.Tensor
	stepSize, correct *ort.Tensor
	version           *ort.Tensor          // of the parameters; see exporter.VersionName
	update            map[int]*ort.Session // by the number of micro-batches
	microBatches      []*gradients
	steps             int // taken
}

// gradients are the results of a micro-batch: its loss, multiplied by its share of the
// batch, and the gradients of that.
type gradients struct {
	weight, loss *ort.Tensor
	of           []*ort.Tensor
}

// New returns an Adam that starts from the weights with both moments at zero. It updates
// parameters with the given number of threads.
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
	for _, p := range a.microBatches {
		all = append(append(all, p.weight, p.loss), p.of...)
	}
	for _, t := range all {
		t.Close()
	}
	for _, s := range a.update {
		s.Close()
	}
}

// Prepare allocates memory and a session for steps of n micro-batches.
func (a *Adam) Prepare(n int) error {
	for len(a.microBatches) < n {
		p := &gradients{}
		a.microBatches = append(a.microBatches, p)
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
	if a.update[n] != nil {
		return nil
	}
	m, err := exporter.UpdateModel(a.parameters, n, inference.Operators(a.engine))
	if err != nil {
		return err
	}
	a.update[n], err = NewSession(a.engine, m, a.threads)
	return err
}

// NewSession returns a session of a graph of the training.
func NewSession(engine *ort.Engine, m *exporter.SessionModel, threads int) (*ort.Session, error) {
	return engine.NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Threads: threads, Spin: true, Kernels: m.Kernels})
}

// Steps returns the number of steps taken.
func (a *Adam) Steps() int { return a.steps }

// weights returns the tensors of the current parameters.
func (a *Adam) weights() []*ort.Tensor { return a.now[:len(a.parameters)] }

// StateDict returns a copy of the parameters.
func (a *Adam) StateDict() models.StateDict { return a.State().Weights }

// State is the whole state of an Adam.
type State struct {
	Steps int // taken
	// The parameters and their first and second moments, in the order of the parameters.
	Weights, First, Second models.StateDict
}

// State returns a copy of the state.
func (a *Adam) State() State {
	of := func(k int) (sd models.StateDict) {
		for i, p := range a.parameters {
			sd = append(sd, models.Tensor{Name: p.Name, Shape: p.Shape, Data: slices.Clone(a.now[k*len(a.parameters)+i].Data())})
		}
		return sd
	}
	return State{a.steps, of(0), of(1), of(2)}
}

// Restore sets the state to one that State returned. Its tensors must have the shapes of
// the parameters.
func (a *Adam) Restore(s State) {
	for i, t := range slices.Concat(s.Weights, s.First, s.Second) {
		copy(a.now[i].Data(), t.Data)
	}
	a.steps = s.Steps
	// Another version than that of the parameters before: see exporter.VersionName.
	a.version.Data()[0] = float32(s.Steps)
}

// Backward runs a gradient session on micro-batch i. The session's inputs are the given
// inputs, the weight and the parameters. The weight is the micro-batch's share of the
// batch. Backward may be called concurrently for different micro-batches.
func (a *Adam) Backward(ctx context.Context, session *ort.Session, i int, weight float32, inputs ...*ort.Tensor) error {
	p := a.microBatches[i]
	p.weight.Data()[0] = weight
	inputs = slices.Concat(inputs, []*ort.Tensor{p.weight}, a.weights())
	if inference.Operators(a.engine) == exporter.Processor {
		inputs = append(inputs, a.version)
	}
	return session.Run(ctx, inputs, append([]*ort.Tensor{p.loss}, p.of...))
}

// Apply takes a step by the gradients of the first n micro-batches and returns the
// batch's loss before the step. It returns ErrDiverged if the loss is not finite, and the
// context's cause if ctx ends. On an error the parameters are unchanged.
func (a *Adam) Apply(ctx context.Context, n int, learningRate float64) (float64, error) {
	loss := 0.0
	for _, p := range a.microBatches[:n] {
		loss += float64(p.loss.Data()[0])
	}
	if math.IsNaN(loss) || math.IsInf(loss, 0) {
		return 0, fmt.Errorf("%w: the loss of step %d is %v", ErrDiverged, a.steps+1, loss)
	}
	t := float64(a.steps + 1)
	a.stepSize.Data()[0] = float32(learningRate / (1 - math.Pow(network.Beta1, t)))
	a.correct.Data()[0] = float32(1 / math.Sqrt(1-math.Pow(network.Beta2, t)))
	inputs := append([]*ort.Tensor{a.stepSize, a.correct}, a.now...)
	for _, p := range a.microBatches[:n] {
		inputs = append(inputs, p.of...)
	}
	if err := a.update[n].Run(ctx, inputs, a.next); err != nil {
		return loss, err
	}
	a.now, a.next = a.next, a.now
	a.steps++
	a.version.Data()[0] = float32(a.steps)
	return loss, nil
}
