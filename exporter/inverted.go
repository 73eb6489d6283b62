package exporter

import (
	"fmt"
	"strings"

	"github.com/deepmed/anomaly/internal/kernels"
	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// invertedBlock is an inverted residual block that was found in a graph, by the nodes of
// its convolutions.
type invertedBlock struct {
	x         *gorgonia.Node
	expand    *gorgonia.Node // nil where the block has none
	depthwise *gorgonia.Node
	project   *gorgonia.Node
	residual  bool
}

// pointwise says whether a node is a convolution of single pixels.
func pointwise(n *gorgonia.Node) bool {
	op, ok := n.Op().(network.Conv2D)
	return ok && op.Window == network.Same(1, 1)
}

// beforeReLU6 is the operand of a ReLU6, nil for any other node.
func beforeReLU6(n *gorgonia.Node) *gorgonia.Node {
	if _, ok := n.Op().(network.ReLU6); !ok {
		return nil
	}
	return operandOf(n, 0)
}

// findInverted finds the block that ends with a node: its last convolution, or what adds
// the block's input to that. It is nil where there is none that package kernels has.
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

// invertedResidual lowers an inverted residual block to one operator: what is between its
// convolutions, several times as large as what comes in and goes out, never leaves the
// cache. It says whether the node is the end of one.
func (l *lowering) invertedResidual(n *gorgonia.Node) (value, bool, error) {
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
	in := []value{l.channelsLast(l.expand(x, b.x.Shape()))}
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
	out.last = true
	return out, true, nil
}

// numberOf gives the number that a node is, if it is a constant of one.
func numberOf(n *gorgonia.Node) (float32, bool) {
	if n.Op() == nil || !strings.HasPrefix(fmt.Sprint(n.Op()), "const") {
		return 0, false
	}
	v, ok := n.Value().(*gorgonia.F32)
	if !ok {
		return 0, false
	}
	return float32(*v), true
}

// normalized lowers (x − mean)/deviation of images that lie with channels first, and are
// not needed in the other layout, to one operator that gives them there.
func (l *lowering) normalized(n *gorgonia.Node) (value, bool, error) {
	is := func(n *gorgonia.Node, op string) bool {
		return n.Op() != nil && strings.HasPrefix(fmt.Sprint(n.Op()), op)
	}
	if !is(n, "÷") || !is(operandOf(n, 0), "-") {
		return value{}, false, nil
	}
	difference := operandOf(n, 0)
	deviation, ok := numberOf(operandOf(n, 1))
	mean, ok2 := numberOf(operandOf(difference, 1))
	image := operandOf(difference, 0)
	if s := image.Shape(); !ok || !ok2 || deviation == 0 || len(s) != 4 || s[1] == 1 {
		return value{}, false, nil
	}
	x, err := l.lower(image)
	if err != nil {
		return value{}, false, err
	}
	if _, ok := l.lasts[x.name]; ok || x.last {
		return value{}, false, nil
	}
	out := l.kernel(kernels.Normalize, n.Shape(), []value{x}, floatAttr("mean", mean), floatAttr("scale", 1/deviation))
	out.last = true
	return out, true, nil
}
