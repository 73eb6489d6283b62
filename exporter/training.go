package exporter

import (
	"slices"

	"github.com/deepmed/anomaly/internal/kernels"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// StepModel is an ONNX graph that only runs here, with the order of its inputs and
// outputs.
type StepModel struct {
	ONNX            []byte
	Inputs, Outputs []string
	// Kernels says whether a session must be made with package kernels' operators.
	Kernels bool
}

// GradientModel lowers the forward pass, the loss and Gorgonia's derivative of
// it for n images of h×w pixels. Inputs: `image` (n×3×h×w), `weight` (scalar:
// the share these images have in their batch), then the parameters, and for the
// processor `version` (see VersionName). Outputs:
// `loss` (scalar, the weighted share of the batch's mean squared error), then
// the gradient of each parameter.
func GradientModel(arch models.Architecture, n, h, w int, with Operators) (*StepModel, error) {
	f, err := network.Autoencoder(arch, n, h, w)
	if err != nil {
		return nil, err
	}
	g, err := network.Differentiate(f)
	if err != nil {
		return nil, err
	}
	return LowerGradient(g, with)
}

// LowerGradient is GradientModel for a network that is built and differentiated
// already.
func LowerGradient(g *network.Gradient, with Operators) (*StepModel, error) {
	l := newStep("gradient", with)
	l.in(g.Image, network.ImageName)
	l.imagesLast(g.Image)
	l.in(g.Weight, network.WeightName)
	l.derivatives(g.Parameters, g.Loss, g.Gradients)
	return l.finish("Forward and backward pass over a part of a batch.")
}

// UpdateModel lowers Adam's step for a batch that came in so many parts.
// Inputs: `step_size` and `correction` (scalars, see network.Update), the
// parameters, their first and their second moments, then for each part the
// gradients of all parameters. Outputs: parameters, first and second moments as
// they are after the step.
func UpdateModel(ps []models.Parameter, parts int, with Operators) (*StepModel, error) {
	u, err := network.Adam(ps, parts)
	if err != nil {
		return nil, err
	}
	l := newStep("update", with)
	l.in(u.StepSize, network.StepSizeName)
	l.in(u.Correction, network.CorrectionName)
	state := []struct {
		suffix      string
		before, now gorgonia.Nodes
	}{{"", u.Parameters, u.NewParameters}, {".m", u.First, u.NewFirst}, {".v", u.Second, u.NewSecond}}
	for _, s := range state {
		for i, p := range ps {
			l.in(s.before[i], p.Name+s.suffix)
		}
	}
	for part, grads := range u.Gradients {
		for i, p := range ps {
			l.in(grads[i], network.GradientName(p.Name, part))
		}
	}
	if l.processor && parts <= kernels.MaxParts {
		l.adam(u)
	}
	for _, s := range state {
		for i, p := range ps {
			l.out(s.now[i], "next."+p.Name+s.suffix)
		}
	}
	return l.finish("One step of Adam.")
}

// VersionName is the input of a graph for the processor that is another number in each
// step, so that what is made of a kernel is made once for all parts of a batch.
const VersionName = "version"

// step is a lowering that remembers the order of inputs and outputs, and the
// first error.
type step struct {
	*lowering
	inputs, outputs []string
	err             error
}

func newStep(name string, with Operators) *step {
	s := &step{lowering: newLowering(name, true)}
	s.processor = with == Processor
	return s
}

// imagesLast brings an input of images to the layout of package kernels, once for all
// who use it.
func (s *step) imagesLast(n *gorgonia.Node) {
	if s.processor {
		s.done[n] = s.channelsLast(s.done[n])
	}
}

// in declares an input. A scalar comes as a tensor of one element, which
// broadcasts alike.
func (s *step) in(n *gorgonia.Node, name string) {
	v := s.source(n, name)
	if len(v.shape) == 0 {
		v.shape = []int{1}
		s.done[n] = v
	}
	s.input(v, "")
	s.inputs = append(s.inputs, name)
}

func (s *step) out(n *gorgonia.Node, name string) {
	if s.err == nil {
		s.err = s.result(n, name, "")
	}
	s.outputs = append(s.outputs, name)
}

// derivatives declares parameters as inputs, and the loss and its gradients with
// regard to them as outputs.
func (s *step) derivatives(parameters gorgonia.Nodes, loss *gorgonia.Node, gradients gorgonia.Nodes) {
	for _, p := range parameters {
		s.in(p, p.Name())
	}
	if s.processor {
		s.version = value{name: VersionName, shape: []int{1}}
		s.input(s.version, "")
		s.inputs = append(s.inputs, VersionName)
	}
	s.out(loss, "loss")
	for i, p := range parameters {
		s.out(gradients[i], network.GradientName(p.Name(), 0))
	}
}

func (s *step) finish(doc string) (*StepModel, error) {
	if s.err != nil {
		return nil, s.err
	}
	s.prune()
	b, err := s.model(doc, nil)
	if err != nil {
		return nil, err
	}
	return &StepModel{ONNX: b, Inputs: slices.Clip(s.inputs), Outputs: slices.Clip(s.outputs), Kernels: s.kernels}, nil
}
