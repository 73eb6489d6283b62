package exporter

import (
	"fmt"
	"slices"
	"strings"

	"github.com/deepmed/anomaly/internal/kernels"
	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// The operators of package kernels store images with channels last, N×H×W×C. Elementwise
// operators stay ONNX's, on either layout. A value's shape is always N×C×H×W; value.nhwc
// reports how it is stored. Images of one channel are stored the same in both layouts, and
// have value.nhwc unset.

// toNHWC returns the value in the layout of package kernels, N×H×W×C.
func (l *lowering) toNHWC(v value) value {
	if v.nhwc {
		return v
	}
	if out, ok := l.nhwcOf[v.name]; ok {
		return out
	}
	if s := v.shape; s[1] == 1 {
		return l.op("Reshape", s, []value{v, l.ints(0, s[2], s[3], 1)}) // 0 keeps the batch size
	}
	out := l.kernel(kernels.ChannelsLast, v.shape, []value{v})
	out.nhwc = true
	l.nhwcOf[v.name] = out
	return out
}

// elementwiseOperators are Gorgonia's elementwise operators, by the beginning of their
// String.
var elementwiseOperators = []string{"sigmoid", "neg", "sqrt", "square", "+", "-", "⊙", "÷"}

// acceptsNHWC reports whether an ONNX operator accepts operands stored N×H×W×C: it is
// elementwise with operands of the same layout or of one element, or it sums all elements.
func acceptsNHWC(op gorgonia.Op, in []value) bool {
	single := func(v value) bool { return !slices.ContainsFunc(v.shape, func(d int) bool { return d != 1 }) }
	if slices.ContainsFunc(in, func(v value) bool { return !v.nhwc && !single(v) }) {
		return false
	}
	switch op := op.(type) {
	case network.ReLU, network.ReLUGrad, network.ReLU6:
		return true
	case network.ScoringOp:
		return op.Kind == network.Softplus || op.Kind == network.Inside && op.Size == in[0].shape[1]
	default:
		name := fmt.Sprint(op)
		return slices.ContainsFunc(elementwiseOperators, func(s string) bool { return strings.HasPrefix(name, s) }) ||
			strings.HasPrefix(name, "Σ[0 1 2 3]")
	}
}

// toNCHW returns the value in ONNX's layout, N×C×H×W.
func (l *lowering) toNCHW(v value) value {
	if !v.nhwc {
		return v
	}
	return l.op("Transpose", v.shape, []value{v}, intsAttr("perm", 0, 3, 1, 2))
}
