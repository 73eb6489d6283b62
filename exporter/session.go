package exporter

import (
	"slices"

	"gorgonia.org/gorgonia"
)

// SessionModel is an ONNX file that this program runs itself, with the order of its inputs
// and outputs.
type SessionModel struct {
	ONNX            []byte
	Inputs, Outputs []string
	// Kernels reports whether the session must register the operators of package kernels.
	Kernels bool
}

// sessionLowering is a lowering to a SessionModel. It records the order of inputs and
// outputs. finish returns the first error.
type sessionLowering struct {
	*lowering
	inputs, outputs []string
	err             error
}

// newSessionLowering returns an empty lowering. The graph may use ONNX Runtime's own
// operators.
func newSessionLowering(name string, with Operators) *sessionLowering {
	s := &sessionLowering{lowering: newLowering(name, true)}
	s.processor = with == Processor
	return s
}

// imagesToNHWC converts an input of images to the layout of package kernels, once for all
// operators that use it.
func (s *sessionLowering) imagesToNHWC(n *gorgonia.Node) {
	if s.processor {
		s.done[n] = s.toNHWC(s.done[n])
	}
}

// in declares an input. A scalar becomes a tensor of one element, which broadcasts the same
// way.
func (s *sessionLowering) in(n *gorgonia.Node, name string) {
	v := s.source(n, name)
	if len(v.shape) == 0 {
		v.shape = []int{1}
		s.done[n] = v
	}
	s.input(v, "")
	s.inputs = append(s.inputs, name)
}

// out declares an output.
func (s *sessionLowering) out(n *gorgonia.Node, name string) {
	if s.err == nil {
		s.err = s.result(n, name, "")
	}
	s.outputs = append(s.outputs, name)
}

// finish removes unused nodes and returns the model with that documentation.
func (s *sessionLowering) finish(doc string) (*SessionModel, error) {
	if s.err != nil {
		return nil, s.err
	}
	s.prune()
	b, err := s.model(doc, nil)
	if err != nil {
		return nil, err
	}
	return &SessionModel{ONNX: b, Inputs: slices.Clip(s.inputs), Outputs: slices.Clip(s.outputs), Kernels: s.kernels}, nil
}
