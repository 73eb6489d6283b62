package exporter

import (
	"fmt"
	"slices"
	"strings"

	"github.com/deepmed/anomaly/internal/kernels"
	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// fused lowers a node together with nodes that it depends on to one operator of package
// kernels, which saves passes over the image: a convolution with its ReLU, the gradient of a
// convolution with the gradient of a ReLU, the concatenation of enlarged images, an inverted
// residual block, and the normalization of an image with the change of its layout. It
// reports whether there is such an operator.
func (l *lowering) fused(n *gorgonia.Node) (value, bool, error) {
	if !l.processor {
		return value{}, false, nil
	}
	switch n.Op().(type) {
	case network.ReLU:
		return l.fuseLayer(operandOf(n, 0), func(layer *gorgonia.Node, in []value) (value, error) {
			return l.layer(layer, in, kernels.Rectify, value{})
		})
	case network.ReLU6:
		return l.fuseLayer(operandOf(n, 0), func(layer *gorgonia.Node, in []value) (value, error) {
			return l.layer(layer, in, kernels.RectifySix, value{})
		})
	case network.ReLUGrad:
		return l.fuseLayer(operandOf(n, 1), func(layer *gorgonia.Node, in []value) (value, error) {
			mask, err := l.lower(operandOf(n, 0))
			if err != nil {
				return value{}, err
			}
			return l.layer(layer, in, kernels.RectifyNone, mask)
		})
	case network.ScoringOp:
		return l.fuseEnlargedJoin(n)
	}
	if v, ok, err := l.fuseNormalization(n); ok || err != nil {
		return v, ok, err
	}
	return l.fuseInvertedResidual(n)
}

// fuseLayer lowers the operands of a convolution and calls emit. It reports false if layer
// is not a convolution, was emitted before, or is not lowered to package kernels.
func (l *lowering) fuseLayer(layer *gorgonia.Node, emit func(*gorgonia.Node, []value) (value, error)) (value, bool, error) {
	if _, ok := l.done[layer]; ok || layer.Op() == nil {
		return value{}, false, nil
	}
	switch layer.Op().(type) {
	case network.Conv2D, network.ConvTranspose2D, network.ConvInputGrad, network.ConvTransposeInputGrad:
	default:
		return value{}, false, nil
	}
	in, err := l.operands(layer)
	if err != nil || !l.useKernel(layer, in) {
		return value{}, false, err
	}
	v, err := emit(layer, in)
	return v, err == nil, err
}

// fuseEnlargedJoin lowers the concatenation of enlarged images, a chain of network.Join and
// network.Enlarge, to one operator. The result is stored N×H×W×C, and no intermediate image
// is allocated. It reports whether n is such a chain.
func (l *lowering) fuseEnlargedJoin(n *gorgonia.Node) (value, bool, error) {
	kind := func(n *gorgonia.Node) network.Kind {
		op, _ := n.Op().(network.ScoringOp)
		return op.Kind
	}
	var parts gorgonia.Nodes // in reverse order
	at := n
	for ; kind(at) == network.Join && kind(operandOf(at, 1)) == network.Enlarge; at = operandOf(at, 0) {
		parts = append(parts, operandOf(operandOf(at, 1), 0))
	}
	parts = append(parts, at)
	if len(parts) == 1 || len(parts) > kernels.MaxJoined {
		return value{}, false, nil
	}
	var in []value
	for _, p := range slices.Backward(parts) {
		v, err := l.full(p)
		if err != nil {
			return value{}, false, err
		}
		in = append(in, v)
	}
	out := l.kernel(kernels.ResizeConcat, n.Shape(), in)
	out.nhwc = true
	return out, true, nil
}

// scalarOf returns the value of a node that is a scalar constant.
func scalarOf(n *gorgonia.Node) (float32, bool) {
	if n.Op() == nil || !strings.HasPrefix(fmt.Sprint(n.Op()), "const") {
		return 0, false
	}
	v, ok := n.Value().(*gorgonia.F32)
	if !ok {
		return 0, false
	}
	return float32(*v), true
}

// fuseNormalization lowers (x − mean)/deviation of images stored N×C×H×W to one operator
// whose result is stored N×H×W×C. It reports false for any other node, and if x exists in
// that layout already.
func (l *lowering) fuseNormalization(n *gorgonia.Node) (value, bool, error) {
	is := func(n *gorgonia.Node, op string) bool {
		return n.Op() != nil && strings.HasPrefix(fmt.Sprint(n.Op()), op)
	}
	if !is(n, "÷") || !is(operandOf(n, 0), "-") {
		return value{}, false, nil
	}
	difference := operandOf(n, 0)
	deviation, ok := scalarOf(operandOf(n, 1))
	mean, ok2 := scalarOf(operandOf(difference, 1))
	image := operandOf(difference, 0)
	if s := image.Shape(); !ok || !ok2 || deviation == 0 || len(s) != 4 || s[1] == 1 {
		return value{}, false, nil
	}
	x, err := l.lower(image)
	if err != nil {
		return value{}, false, err
	}
	if _, ok := l.nhwcOf[x.name]; ok || x.nhwc {
		return value{}, false, nil
	}
	out := l.kernel(kernels.Normalize, n.Shape(), []value{x}, floatAttr("mean", mean), floatAttr("scale", 1/deviation))
	out.nhwc = true
	return out, true, nil
}
