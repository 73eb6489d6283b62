package network

import (
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Machine computes a network on Gorgonia's tape machine with the operators'
// plain Go implementations. It takes seconds where ONNX Runtime takes
// milliseconds, and shares nothing with it: it is what ONNX Runtime is held
// against. One goroutine may use it at a time. It must be closed.
type Machine struct {
	forward *Forward
	vm      gorgonia.VM
	// What Read nodes fill: the machine reuses the registers of all others.
	reconstruction, errors, scores gorgonia.Value
}

// JudgingMachine is Machine with what judges images beside the network, and its
// tensors in the order of its Parameters. It adds that to the graph, which must
// not have it yet.
func (f *Forward) JudgingMachine(weights, normality models.StateDict) (*Machine, error) {
	j, err := f.Judge(normality)
	if err != nil {
		return nil, err
	}
	if len(normality) != len(j.Parameters) {
		return nil, fmt.Errorf("network: %d tensors of normality, expected %d", len(normality), len(j.Parameters))
	}
	for i, t := range normality {
		if err := let(j.Parameters[i], t.Data); err != nil {
			return nil, err
		}
	}
	for _, fixed := range j.Filters {
		if err := let(fixed.Node, fixed.Data); err != nil {
			return nil, err
		}
	}
	return f.machine(weights, j.Score)
}

// Machine prepares to compute the network with weights in the order of its
// Parameters. It adds to the graph what reads the results, once for each call.
func (f *Forward) Machine(weights models.StateDict) (*Machine, error) {
	return f.machine(weights, f.Error)
}

func (f *Forward) machine(weights models.StateDict, score *gorgonia.Node) (*Machine, error) {
	if len(weights) != len(f.Parameters) {
		return nil, fmt.Errorf("network: %d weights for %d parameters", len(weights), len(f.Parameters))
	}
	for i, w := range weights {
		if err := let(f.Parameters[i], w.Data); err != nil {
			return nil, err
		}
	}
	m := &Machine{forward: f}
	gorgonia.Read(f.Reconstruction, &m.reconstruction)
	gorgonia.Read(f.Error, &m.errors)
	gorgonia.Read(score, &m.scores)
	m.vm = gorgonia.NewTapeMachine(f.Graph)
	return m, nil
}

// Run computes the reconstruction (N×3×H×W) and the mean squared error of each
// of the N images that the network was built for; images are N×3×H×W in 0…1.
func (m *Machine) Run(images []float32) (reconstruction, errors []float32, err error) {
	if err := let(m.forward.Image, images); err != nil {
		return nil, nil, err
	}
	m.vm.Reset()
	if err := m.vm.RunAll(); err != nil {
		return nil, nil, fmt.Errorf("network: on Gorgonia's machine: %w", err)
	}
	if reconstruction, err = elements(m.reconstruction); err != nil {
		return nil, nil, err
	}
	errors, err = elements(m.errors)
	return reconstruction, errors, err
}

// Scores are the scores of the images of the last Run by a JudgingMachine, their
// errors by any other.
func (m *Machine) Scores() ([]float32, error) { return elements(m.scores) }

// Close gives the machine's resources back.
func (m *Machine) Close() error { return m.vm.Close() }

// let gives an input of the graph a copy of the data: the machine may compute
// in place.
func let(n *gorgonia.Node, data []float32) error {
	if size := n.Shape().TotalSize(); len(data) != size {
		return fmt.Errorf("network: %d numbers for %s of shape %v, expected %d", len(data), n.Name(), n.Shape(), size)
	}
	v := tensor.New(tensor.WithShape(n.Shape()...), tensor.WithBacking(slices.Clone(data)))
	if err := gorgonia.Let(n, v); err != nil {
		return fmt.Errorf("network: %s: %w", n.Name(), err)
	}
	return nil
}

// elements copies what a Read node found, which the next run may overwrite.
func elements(v gorgonia.Value) ([]float32, error) {
	switch data := v.Data().(type) {
	case []float32:
		return slices.Clone(data), nil
	case float32:
		return []float32{data}, nil
	}
	return nil, fmt.Errorf("network: a result of type %T, expected float32", v.Data())
}
