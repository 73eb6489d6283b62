package exporter

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/kernels"
	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// invertedBlock is an inverted residual block (MobileNetV2, Sandler et al., 2018) in a graph,
// by the nodes of its convolutions.
type invertedBlock struct {
	x         *gorgonia.Node
	expand    *gorgonia.Node // may be nil
	depthwise *gorgonia.Node
	project   *gorgonia.Node
	residual  bool
}

// pointwise reports whether a node is a 1×1 convolution of stride 1.
func pointwise(n *gorgonia.Node) bool {
	op, ok := n.Op().(network.Conv2D)
	return ok && op.Window == network.Same(1, 1)
}

// beforeReLU6 returns the operand of a ReLU6, and nil for any other node.
func beforeReLU6(n *gorgonia.Node) *gorgonia.Node {
	if _, ok := n.Op().(network.ReLU6); !ok {
		return nil
	}
	return operandOf(n, 0)
}

// findInverted returns the block whose last node is n, either its last convolution or the
// addition of the block's input. It returns nil if there is no block that package kernels
// supports.
func findInverted(n *gorgonia.Node) *invertedBlock {
	b := &invertedBlock{project: n}
	var added *gorgonia.Node
	if n.Op() != nil && !pointwise(n) {
		if fmt.Sprint(n.Op())[:1] != "+" {
			return nil
		}
		b.project, added = operandOf(n, 0), operandOf(n, 1)
	}
	if !pointwise(b.project) {
		return nil
	}
	if b.depthwise = beforeReLU6(operandOf(b.project, 0)); b.depthwise == nil {
		return nil
	}
	op, ok := b.depthwise.Op().(network.DepthwiseConv2D)
	if w := op.Window; !ok || (w.Kernel != 3 && w.Kernel != 5) || (w.Stride != 1 && w.Stride != 2) || w != network.Same(w.Kernel, w.Stride) {
		return nil
	}
	b.x = operandOf(b.depthwise, 0)
	if before := beforeReLU6(b.x); before != nil && pointwise(before) {
		b.x, b.expand = operandOf(before, 0), before
	}
	b.residual = added != nil
	if s := b.x.Shape(); b.residual && added != b.x || s[2]%op.Window.Stride != 0 || s[3]%op.Window.Stride != 0 {
		return nil
	}
	return b
}

// fuseInvertedResidual lowers an inverted residual block to one operator. The images between
// its convolutions are several times as large as its input and output, and stay in the
// processor's cache. It reports whether n is the last node of a block.
func (l *lowering) fuseInvertedResidual(n *gorgonia.Node) (value, bool, error) {
	if n.Op() == nil {
		return value{}, false, nil
	}
	b := findInverted(n)
	if b == nil {
		return value{}, false, nil
	}
	layers := []*gorgonia.Node{b.depthwise, b.project}
	if b.expand != nil {
		layers = append(layers, b.expand)
	}
	x, err := l.lower(b.x)
	if err != nil {
		return value{}, false, err
	}
	in := []value{l.toNHWC(l.expand(x, b.x.Shape()))}
	for _, layer := range layers {
		for i := 1; i <= 2; i++ {
			v, err := l.lower(operandOf(layer, i))
			if err != nil {
				return value{}, false, err
			}
			in = append(in, v)
		}
	}
	w := b.depthwise.Op().(network.DepthwiseConv2D).Window
	out := l.kernel(kernels.InvertedResidual, n.Shape(), in,
		intAttr("kernel", w.Kernel), intAttr("stride", w.Stride), intAttr("padding", w.Padding),
		flagAttr("residual", b.residual), flagAttr("fixed", l.fixed))
	out.nhwc = true
	return out, true, nil
}
