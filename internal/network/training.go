package network

import (
	"fmt"

	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// WeightName is the name of the input with a micro-batch's fraction of the batch.
const WeightName = "weight"

// Gradient is a network with its loss and the derivatives of the loss with
// respect to every parameter.
type Gradient struct {
	*Forward
	// Weight is the micro-batch's fraction of the batch, n/batch: the gradients
	// of the micro-batches add up to the gradient of the batch.
	Weight *gorgonia.Node
	// Loss is Weight times the mean squared error over the images; with Forward.Masked,
	// times the mean over the images of Error.
	Loss *gorgonia.Node
	// Gradients are in the order of Parameters, and have their shapes.
	Gradients gorgonia.Nodes
}

// Differentiate adds the loss and its derivatives to the network's graph.
func Differentiate(f *Forward) (*Gradient, error) {
	b := &builder{graph: f.Graph}
	g := &Gradient{Forward: f, Weight: b.input(WeightName)}
	if f.Masked {
		g.Loss = b.node(gorgonia.HadamardProd(b.node(gorgonia.Mean(f.Error)), g.Weight))
		return g, b.differentiate(g)
	}
	// A single mean, not the mean of the images' errors: it does not depend on
	// the memory layout of the pixels, so that a lowering may choose one.
	square := b.node(gorgonia.Square(b.node(gorgonia.Sub(f.Reconstruction, f.Image))))
	g.Loss = b.node(gorgonia.HadamardProd(b.node(gorgonia.Mean(b.checked(square))), g.Weight))
	return g, b.differentiate(g)
}

// differentiate sets the gradients of the loss.
func (b *builder) differentiate(g *Gradient) (err error) {
	if b.err != nil {
		return fmt.Errorf("network: the loss: %w", b.err)
	}
	if g.Gradients, err = gorgonia.Grad(g.Loss, g.Parameters...); err != nil {
		return fmt.Errorf("network: differentiating the loss: %w", err)
	}
	return nil
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

// Update is the graph of one step of Adam, over the gradients of the
// micro-batches.
//
// With t the number of the step, from 1, PyTorch computes
//
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)
//
// The two factors that depend on t are inputs, computed in float64 by the caller:
// 1−0.999ᵗ loses precision in float32.
type Update struct {
	Graph *gorgonia.ExprGraph
	// Gradients has, for every micro-batch, a node for every parameter.
	Gradients []gorgonia.Nodes
	// Parameters, First and Second are the parameters and Adam's moments m and v.
	Parameters, First, Second gorgonia.Nodes
	// StepSize is lr/(1−β₁ᵗ), Correction is 1/√(1−β₂ᵗ).
	StepSize, Correction *gorgonia.Node
	// NewParameters, NewFirst and NewSecond are the updated values.
	NewParameters, NewFirst, NewSecond gorgonia.Nodes
}

// Adam builds the update of the parameters for a batch of the given number of
// micro-batches.
func Adam(ps []models.Parameter, microBatches int) (*Update, error) {
	b := newBuilder()
	u := &Update{
		Graph:      b.graph,
		Gradients:  make([]gorgonia.Nodes, microBatches),
		StepSize:   b.input(StepSizeName),
		Correction: b.input(CorrectionName),
	}
	constant := func(v float64) *gorgonia.Node { return gorgonia.NewConstant(float32(v)) }
	mul := func(x, y *gorgonia.Node) *gorgonia.Node { return b.node(gorgonia.HadamardProd(x, y)) }
	add := func(x, y *gorgonia.Node) *gorgonia.Node { return b.node(gorgonia.Add(x, y)) }
	for _, p := range ps {
		var grad *gorgonia.Node
		for i := range microBatches {
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

// GradientName returns the name of a parameter's gradient of micro-batch i.
func GradientName(parameter string, i int) string { return fmt.Sprintf("%s.grad.%d", parameter, i) }
