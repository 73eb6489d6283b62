package network

import (
	"fmt"

	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// TargetName is the input of a head's training that says where anomalies are.
const TargetName = "target"

// inputs adds the parameters as inputs of the graph.
func (b *builder) inputs(ps []models.Parameter) gorgonia.Nodes {
	nodes := make(gorgonia.Nodes, len(ps))
	for i, p := range ps {
		nodes[i] = b.input(p.Name, p.Shape...)
	}
	return nodes
}

// head is a small convolutional network that keeps an image's sides: logits (N×1×P×P)
// of what is seen of patches (N×C×P×P). Parameters are weights and biases, layer by
// layer, with a ReLU between.
func (b *builder) head(x *gorgonia.Node, parameters gorgonia.Nodes) *gorgonia.Node {
	for i := 0; i < len(parameters); i += 2 {
		weight := parameters[i]
		if b.err != nil {
			return b.checked(nil)
		}
		kernel := weight.Shape()[3]
		x = b.node(Convolve(b.checked(x), weight, parameters[i+1], Window{Kernel: kernel, Stride: 1, Padding: kernel / 2}))
		if i+2 < len(parameters) {
			x = b.node(Rectify(b.checked(x)))
		}
	}
	return x
}

// HeadGradient is a head with its loss and the loss's derivatives.
type HeadGradient struct {
	Graph *gorgonia.ExprGraph
	// Features are those of models.HeadTaps, N×C×P×P each. Target is N×1×P×P with the
	// finest one's P: 1 where an anomaly was painted, 0 where none was.
	Features gorgonia.Nodes
	Target   *gorgonia.Node
	// Weight is the share of the whole batch that these images are.
	Weight *gorgonia.Node
	// Parameters are in the order of models.HeadParameters and bear its names.
	Parameters gorgonia.Nodes
	// Logits are N×1×P×P; Loss is Weight times their mean LogisticLoss.
	Logits, Loss *gorgonia.Node
	// Gradients are in the order of Parameters.
	Gradients gorgonia.Nodes
}

// DifferentiateHead builds head k for n images of that side, and differentiates it.
func DifferentiateHead(n, side, k int) (*HeadGradient, error) {
	b := newBuilder()
	taps := models.HeadTaps()
	p := taps[0].Patches(side)
	g := &HeadGradient{
		Graph: b.graph, Target: b.input(TargetName, n, 1, p, p),
		Weight: b.input(WeightName), Parameters: b.inputs(models.HeadParameters(k)),
	}
	for _, t := range taps {
		p := t.Patches(side)
		g.Features = append(g.Features, b.input(fmt.Sprintf("features.%d", t.Block), n, t.Channels, p, p))
	}
	g.Logits = b.head(b.joinTaps(g.Features), g.Parameters)
	loss := b.node(gorgonia.ApplyOp(LogisticLoss{}, b.checked(g.Logits), g.Target))
	rows := b.node(gorgonia.Mean(b.checked(loss), 3)) // by rows first, as in Autoencoder
	images := b.node(gorgonia.Mean(b.checked(rows), 1, 2))
	g.Loss = b.node(gorgonia.HadamardProd(b.node(gorgonia.Mean(b.checked(images))), g.Weight))
	if b.err != nil {
		return nil, fmt.Errorf("network: a head: %w", b.err)
	}
	var err error
	if g.Gradients, err = gorgonia.Grad(g.Loss, g.Parameters...); err != nil {
		return nil, fmt.Errorf("network: differentiating a head: %w", err)
	}
	return g, nil
}
