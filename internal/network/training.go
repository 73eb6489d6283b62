package network

import (
	"fmt"

	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// WeightName is the input by which a part of a batch says how much of the
// batch it is.
const WeightName = "weight"

// Gradient is a network with its loss and the loss's derivative with regard to
// every parameter, as Gorgonia differentiates it.
type Gradient struct {
	*Forward
	// Weight is the share of the whole batch that these images are: n/batch.
	// The gradients of the parts of a batch then add up to the batch's.
	Weight *gorgonia.Node
	// Loss is Weight times the mean squared error over the images.
	Loss *gorgonia.Node
	// Gradients are in the order of Parameters, and have their shapes.
	Gradients gorgonia.Nodes
}

// Differentiate adds the loss and its derivatives to the network's graph.
func Differentiate(f *Forward) (*Gradient, error) {
	b := &builder{graph: f.Graph}
	g := &Gradient{Forward: f, Weight: b.input(WeightName)}
	// The mean of everything at once, not of the images' errors: it does not
	// depend on how the pixels lie, which a lowering may then choose.
	square := b.node(gorgonia.Square(b.node(gorgonia.Sub(f.Reconstruction, f.Image))))
	g.Loss = b.node(gorgonia.HadamardProd(b.node(gorgonia.Mean(b.checked(square))), g.Weight))
	if b.err != nil {
		return nil, fmt.Errorf("network: the loss: %w", b.err)
	}
	var err error
	if g.Gradients, err = gorgonia.Grad(g.Loss, f.Parameters...); err != nil {
		return nil, fmt.Errorf("network: differentiating the loss: %w", err)
	}
	return g, nil
}

// Adam's constants, PyTorch's defaults (Kingma and Ba, "Adam: A Method for
// Stochastic Optimization", 2015).
const (
	Beta1   = 0.9
	Beta2   = 0.999
	Epsilon = 1e-8
)

// Names of the inputs of an Update that are neither parameters nor gradients.
const (
	StepSizeName   = "step_size"
	CorrectionName = "correction"
)

// Update is one step of Adam as an expression, over the gradients of the parts
// of a batch.
//
// With t the number of the step from 1, PyTorch computes
//
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)
//
// The two factors that depend on t are inputs, computed in float64 outside:
// 1−0.999ᵗ has no digits to spare in float32.
type Update struct {
	Graph *gorgonia.ExprGraph
	// Gradients hold, for every part of the batch, a node for every parameter.
	Gradients []gorgonia.Nodes
	// Parameters, First and Second are the parameters and Adam's moments m and v.
	Parameters, First, Second gorgonia.Nodes
	// StepSize is lr/(1−β₁ᵗ), Correction is 1/√(1−β₂ᵗ).
	StepSize, Correction *gorgonia.Node
	// NewParameters, NewFirst and NewSecond are what they become.
	NewParameters, NewFirst, NewSecond gorgonia.Nodes
}

// Adam builds the update of the parameters for a batch that came in so many
// parts.
func Adam(ps []models.Parameter, parts int) (*Update, error) {
	b := newBuilder()
	u := &Update{
		Graph:      b.graph,
		Gradients:  make([]gorgonia.Nodes, parts),
		StepSize:   b.input(StepSizeName),
		Correction: b.input(CorrectionName),
	}
	constant := func(v float64) *gorgonia.Node { return gorgonia.NewConstant(float32(v)) }
	mul := func(x, y *gorgonia.Node) *gorgonia.Node { return b.node(gorgonia.HadamardProd(x, y)) }
	add := func(x, y *gorgonia.Node) *gorgonia.Node { return b.node(gorgonia.Add(x, y)) }
	for _, p := range ps {
		var grad *gorgonia.Node
		for i := range parts {
			part := b.input(GradientName(p.Name, i), p.Shape...)
			u.Gradients[i] = append(u.Gradients[i], part)
			if grad == nil {
				grad = part
			} else {
				grad = add(grad, part)
			}
		}
		param := b.input(p.Name, p.Shape...)
		first, second := b.input(p.Name+".m", p.Shape...), b.input(p.Name+".v", p.Shape...)
		m := add(mul(first, constant(Beta1)), mul(grad, constant(1-Beta1)))
		v := add(mul(second, constant(Beta2)), mul(b.node(gorgonia.Square(grad)), constant(1-Beta2)))
		root := mul(b.node(gorgonia.Sqrt(v)), u.Correction)
		ratio := b.node(gorgonia.HadamardDiv(m, add(root, constant(Epsilon))))
		next := b.node(gorgonia.Sub(param, mul(ratio, u.StepSize)))
		u.Parameters, u.NewParameters = append(u.Parameters, param), append(u.NewParameters, next)
		u.First, u.NewFirst = append(u.First, first), append(u.NewFirst, m)
		u.Second, u.NewSecond = append(u.Second, second), append(u.NewSecond, v)
	}
	if b.err != nil {
		return nil, fmt.Errorf("network: Adam: %w", b.err)
	}
	return u, nil
}

// GradientName is the name of the gradient of a parameter that part i of a
// batch gave.
func GradientName(parameter string, i int) string { return fmt.Sprintf("%s.grad.%d", parameter, i) }
