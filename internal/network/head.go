package network

import (
	"fmt"

	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// TargetName is the name of the input with the mask of synthetic anomalies in the
// training of a defect head.
const TargetName = "target"

// InsideName is the name of the input with the weights of patches in the training of a
// defect head.
const InsideName = "inside"

// inputs adds parameters as inputs of the graph.
func (b *builder) inputs(ps []models.Parameter) gorgonia.Nodes {
	nodes := make(gorgonia.Nodes, len(ps))
	for i, p := range ps {
		nodes[i] = b.input(p.Name, p.Shape...)
	}
	return nodes
}

// head adds a defect head, a small convolutional network: logits (N×1×P×P) from
// the features of patches (N×C×P×P). Parameters are weights and biases, layer by
// layer, with a ReLU between layers.
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

// HeadGradient is a defect head with its loss and the derivatives of the loss.
type HeadGradient struct {
	Graph *gorgonia.ExprGraph
	// Features are those of models.HeadTaps, N×C×P×P each. Target is N×1×P×P, with
	// the P of the finest features: 1 in a synthetic anomaly, 0 elsewhere.
	Features gorgonia.Nodes
	Target   *gorgonia.Node
	// Inside, N×1×P×P, weights the loss of each patch: 1 for one that is judged, times the
	// reciprocal of their share, and 0 for others. It is nil unless masked.
	Inside *gorgonia.Node
	// Weight is the micro-batch's fraction of the batch.
	Weight *gorgonia.Node
	// Parameters are in the order of models.HeadParameters, with the same names.
	Parameters gorgonia.Nodes
	// Logits is N×1×P×P; Loss is Weight times the mean LogisticLoss.
	Logits, Loss *gorgonia.Node
	// Gradients are in the order of Parameters.
	Gradients gorgonia.Nodes
}

// DifferentiateHead builds defect head k for n images of that size, and differentiates its
// loss. If masked, patches outside do not count in the loss.
func DifferentiateHead(n int, size models.Size, k int, masked bool) (*HeadGradient, error) {
	b := newBuilder()
	taps := models.HeadTaps()
	p := taps[0].Patches(size)
	g := &HeadGradient{
		Graph: b.graph, Target: b.input(TargetName, n, 1, p.H, p.W),
		Weight: b.input(WeightName), Parameters: b.inputs(models.HeadParameters(k)),
	}
	for _, t := range taps {
		p := t.Patches(size)
		g.Features = append(g.Features, b.input(fmt.Sprintf("features.%d", t.Block), n, t.Channels, p.H, p.W))
	}
	g.Logits = b.head(b.joinTaps(g.Features), g.Parameters)
	loss := b.node(gorgonia.ApplyOp(LogisticLoss{}, b.checked(g.Logits), g.Target))
	if masked {
		g.Inside = b.input(InsideName, n, 1, p.H, p.W)
		loss = b.node(gorgonia.HadamardProd(b.checked(loss), g.Inside))
	}
	rows := b.node(gorgonia.Mean(b.checked(loss), 3)) // by rows first, as in Autoencoder
	images := b.node(gorgonia.Mean(b.checked(rows), 1, 2))
	g.Loss = b.node(gorgonia.HadamardProd(b.node(gorgonia.Mean(b.checked(images))), g.Weight))
	if b.err != nil {
		return nil, fmt.Errorf("network: defect head: %w", b.err)
	}
	var err error
	if g.Gradients, err = gorgonia.Grad(g.Loss, g.Parameters...); err != nil {
		return nil, fmt.Errorf("network: differentiating a defect head: %w", err)
	}
	return g, nil
}
