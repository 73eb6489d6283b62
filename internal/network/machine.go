package network

import (
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Machine computes a network on Gorgonia's tape machine with the operators'
// plain Go implementations. It is about a thousand times slower than ONNX
// Runtime, and serves as an independent reference for it. A Machine must not be
// used concurrently, and must be closed.
type Machine struct {
	forward *Forward
	vm      gorgonia.VM
	// Filled by Read nodes: the tape machine reuses the registers of other nodes.
	reconstruction, errors, scores gorgonia.Value
}

// JudgingMachine is like Machine, and also computes anomaly scores with the
// given reference statistics, in the order of Judgement.Parameters. It adds the
// scoring graph, so it must be called at most once, and not after Judge.
func (f *Forward) JudgingMachine(weights, reference models.StateDict) (*Machine, error) {
	j, err := f.Judge(reference)
	if err != nil {
		return nil, err
	}
	if len(reference) != len(j.Parameters) {
		return nil, fmt.Errorf("network: %d tensors of reference statistics, expected %d", len(reference), len(j.Parameters))
	}
	for i, t := range reference {
		if err := let(j.Parameters[i], t.Data); err != nil {
			return nil, err
		}
	}
	for _, fixed := range j.Filters {
		if err := let(fixed.Node, fixed.Data); err != nil {
			return nil, err
		}
	}
	if j.Place != nil { // the first place
		if err := let(j.Place, make([]float32, j.Place.Shape().TotalSize())); err != nil {
			return nil, err
		}
	}
	return f.machine(weights, j.Score)
}

// Machine returns a Machine for the network, with weights in the order of
// Parameters. Each call adds nodes to the graph that read the results.
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

// Run computes the reconstructions (N×3×H×W) and the mean squared error of each
// image. Images are N×3×H×W in 0…1; N is fixed by the network.
func (m *Machine) Run(images []float32) (reconstruction, errors []float32, err error) {
	if err := let(m.forward.Image, images); err != nil {
		return nil, nil, err
	}
	m.vm.Reset()
	if err := m.vm.RunAll(); err != nil {
		return nil, nil, fmt.Errorf("network: on Gorgonia's tape machine: %w", err)
	}
	if reconstruction, err = elements(m.reconstruction); err != nil {
		return nil, nil, err
	}
	errors, err = elements(m.errors)
	return reconstruction, errors, err
}

// Scores returns the anomaly scores of the images of the last Run; without a
// scoring graph, their mean squared errors.
func (m *Machine) Scores() ([]float32, error) { return elements(m.scores) }

// Close releases the resources of the machine.
func (m *Machine) Close() error { return m.vm.Close() }

// let sets an input of the graph to a copy of data: the tape machine may compute
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

// elements copies the value of a Read node, which the next run may overwrite.
func elements(v gorgonia.Value) ([]float32, error) {
	switch data := v.Data().(type) {
	case []float32:
		return slices.Clone(data), nil
	case float32:
		return []float32{data}, nil
	}
	return nil, fmt.Errorf("network: a result of type %T, expected float32", v.Data())
}
