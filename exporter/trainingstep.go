package exporter

import (
	"github.com/deepmed/anomaly/internal/kernels"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// GradientModel lowers the forward pass, the loss and its gradient, derived by Gorgonia, for
// n images of h×w pixels. Inputs: `image` (n×3×h×w), `weight` (scalar, the share of these
// images in their batch), the parameters, and with Processor `version` (see VersionName).
// Outputs: `loss` (scalar, the mean squared error times weight), then the gradient of each
// parameter.
func GradientModel(arch models.Architecture, n, h, w int, with Operators) (*SessionModel, error) {
	return gradientModel(network.Autoencoder, arch, n, h, w, with)
}

// MaskedGradientModel is GradientModel for images with pixels outside; see
// network.Forward.Masked.
func MaskedGradientModel(arch models.Architecture, n, h, w int, with Operators) (*SessionModel, error) {
	return gradientModel(network.MaskedAutoencoder, arch, n, h, w, with)
}

func gradientModel(build func(models.Architecture, int, int, int) (*network.Forward, error), arch models.Architecture, n, h, w int, with Operators) (*SessionModel, error) {
	f, err := build(arch, n, h, w)
	if err != nil {
		return nil, err
	}
	g, err := network.Differentiate(f)
	if err != nil {
		return nil, err
	}
	return LowerGradient(g, with)
}

// LowerGradient is GradientModel for a network that was built and differentiated already.
func LowerGradient(g *network.Gradient, with Operators) (*SessionModel, error) {
	l := newSessionLowering("gradient", with)
	l.in(g.Image, network.ImageName)
	l.imagesToNHWC(g.Image)
	l.in(g.Weight, network.WeightName)
	l.derivatives(g.Parameters, g.Loss, g.Gradients)
	return l.finish("Forward and backward pass of a micro-batch.")
}

// UpdateModel lowers Adam's step for a batch split into micro-batches. Inputs:
// `step_size` and `correction` (scalars, see network.Update), the parameters, their first
// moments, their second moments, then for each micro-batch the gradients of all parameters.
// Outputs: the parameters, first moments and second moments after the step.
func UpdateModel(ps []models.Parameter, microBatches int, with Operators) (*SessionModel, error) {
	u, err := network.Adam(ps, microBatches)
	if err != nil {
		return nil, err
	}
	l := newSessionLowering("update", with)
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
	for k, grads := range u.Gradients {
		for i, p := range ps {
			l.in(grads[i], network.GradientName(p.Name, k))
		}
	}
	if l.processor && microBatches <= kernels.MaxParts {
		l.adam(u)
	}
	for _, s := range state {
		for i, p := range ps {
			l.out(s.now[i], "next."+p.Name+s.suffix)
		}
	}
	return l.finish("One step of Adam.")
}

// VersionName is an input of GradientModel and HeadGradientModel with Processor. Its number
// must change when the parameters do: package kernels transforms each convolution kernel
// once per version, and reuses the result for all micro-batches of a step.
const VersionName = "version"

// derivatives declares the parameters as inputs, and the loss and its gradient with respect
// to each parameter as outputs.
func (s *sessionLowering) derivatives(parameters gorgonia.Nodes, loss *gorgonia.Node, gradients gorgonia.Nodes) {
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
