package exporter

import (
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// HeadGradientModel lowers the forward and backward pass of defect head k for n images of
// that size. Inputs: the features of each block of models.HeadTaps (see
// FeaturesName), `target` (n×1×P×P), if masked
// `inside` (n×1×P×P, see network.HeadGradient), `weight` (scalar, the share of these images in their
// batch), the parameters, and with Processor `version` (see VersionName). Outputs: `loss`
// (scalar), then the gradient of each parameter.
func HeadGradientModel(n int, size models.Size, k int, masked bool, with Operators) (*SessionModel, error) {
	g, err := network.DifferentiateHead(n, size, k, masked)
	if err != nil {
		return nil, err
	}
	l := newSessionLowering("head", with)
	l.headInputs(g)
	l.in(g.Target, network.TargetName)
	if masked {
		l.in(g.Inside, network.InsideName)
	}
	l.in(g.Weight, network.WeightName)
	l.derivatives(g.Parameters, g.Loss, g.Gradients)
	return l.finish("Forward and backward pass of a defect head.")
}

// HeadModel lowers the forward pass of defect head k for one image of that size.
// Inputs: the features of each block of models.HeadTaps, then the parameters. Output:
// `logits` (1×1×P×P).
func HeadModel(size models.Size, k int, with Operators) (*SessionModel, error) {
	g, err := network.DifferentiateHead(1, size, k, false)
	if err != nil {
		return nil, err
	}
	l := newSessionLowering("heads", with)
	l.headInputs(g)
	for _, p := range g.Parameters {
		l.in(p, p.Name())
	}
	l.out(g.Logits, "logits")
	return l.finish("Forward pass of a defect head.")
}

// headInputs declares the features of each block of models.HeadTaps as inputs.
func (s *sessionLowering) headInputs(g *network.HeadGradient) {
	for i, t := range models.HeadTaps() {
		s.in(g.Features[i], FeaturesName(t.Block))
	}
}

// lowerLogisticLoss lowers ln(1 + exp y) − t·y for logits y and targets t.
func lowerLogisticLoss(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	s := n.Shape()
	y, t := l.expand(in[0], s), l.expand(in[1], s)
	return l.op("Sub", s, []value{l.op("Softplus", s, []value{y}), l.op("Mul", s, []value{t, y})}), nil
}
