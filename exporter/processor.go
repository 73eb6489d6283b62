package exporter

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/deepmed/anomaly/internal/kernels"
	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// A training step on the processor, and what makes a verdict there, are lowered to the
// operators of package kernels, which have images with their channels last. What works
// element by element is ONNX's own, on the same layout. A value's shape stays N×C×H×W,
// what it means; value.last tells how it lies in memory. Images of one channel lie the
// same either way, and count as ONNX's.

// Operators says what a graph that runs here is lowered to.
type Operators int

const (
	// Portable is for any execution provider: ONNX's operators and FusedMatMul, which is
	// ONNX Runtime's own.
	Portable Operators = iota
	// Processor is for the processor: convolutions and their derivatives are those of
	// package kernels, with which a session must be made.
	Processor
)

// processorRules are the rules of the operators that package kernels has, by type.
var processorRules map[reflect.Type]rule

func init() { // not in the declaration: the rules lower nodes, and so refer to the table
	processorRules = map[reflect.Type]rule{
		reflect.TypeFor[network.Conv2D]():                 lowerLayer,
		reflect.TypeFor[network.ConvTranspose2D]():        lowerLayer,
		reflect.TypeFor[network.ConvInputGrad]():          lowerLayer,
		reflect.TypeFor[network.ConvTransposeInputGrad](): lowerLayer,
		reflect.TypeFor[network.ConvWeightGrad](): func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
			window, err := windowAttributes(n.Op())
			if err != nil {
				return value{}, err
			}
			return l.kernel(kernels.ConvWeightGrad, n.Shape(), []value{l.channelsLast(in[0]), l.channelsLast(in[1])}, window...), nil
		},
		reflect.TypeFor[network.ChannelSum](): func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
			return l.kernel(kernels.ChannelSum, n.Shape(), []value{l.channelsLast(l.expand(in[0], operandShape(n, 0)))}), nil
		},
	}
}

// kernel adds an operator of package kernels.
func (l *lowering) kernel(op string, shape []int, in []value, attrs ...attribute) value {
	l.kernels = true
	return l.domainOp(kernels.Domain, op, shape, in, attrs...)
}

// channelsLast is the value in the layout that package kernels takes.
func (l *lowering) channelsLast(v value) value {
	if v.last {
		return v
	}
	if out, ok := l.lasts[v.name]; ok {
		return out
	}
	if s := v.shape; s[1] == 1 {
		return l.op("Reshape", s, []value{v, l.ints(0, s[2], s[3], 1)}) // 0 is for as many as there are
	}
	out := l.kernel(kernels.ChannelsLast, v.shape, []value{v})
	out.last = true
	l.lasts[v.name] = out
	return out
}

// adam lowers the whole of each parameter's update to one operator, which reads and
// writes everything once: as twelve of ONNX's it took 4 ms for the default network, a
// sixth of a step on eight images of 128 px.
func (l *lowering) adam(u *network.Update) {
	for i, p := range u.Parameters {
		in := []value{l.done[u.StepSize], l.done[u.Correction], l.done[p], l.done[u.First[i]], l.done[u.Second[i]]}
		for _, part := range u.Gradients {
			in = append(in, l.done[part[i]])
		}
		out := l.ops(kernels.Domain, kernels.Adam, [][]int{p.Shape(), p.Shape(), p.Shape()}, in,
			floatAttr("beta1", network.Beta1), floatAttr("rest1", 1-network.Beta1),
			floatAttr("beta2", network.Beta2), floatAttr("rest2", 1-network.Beta2), floatAttr("epsilon", network.Epsilon))
		l.done[u.NewParameters[i]], l.done[u.NewFirst[i]], l.done[u.NewSecond[i]] = out[0], out[1], out[2]
	}
	l.kernels = true
}

// reconstructionError lowers the mean squared error of each image to one operator, from what
// is before the reconstruction's sigmoid: as seven of ONNX's it took a fortieth of a verdict.
func (l *lowering) reconstructionError(f *network.Forward) error {
	before, err := l.lower(operandOf(f.Reconstruction, 0))
	if err != nil {
		return err
	}
	image, err := l.lower(f.Image)
	if err != nil {
		return err
	}
	l.done[f.Error] = l.kernel(kernels.SigmoidMSE, f.Error.Shape(), []value{l.channelsLast(before), l.channelsLast(image)})
	return nil
}

// windowAttributes are the geometry of a convolution as package kernels takes it, which
// has those that keep an image's sides or halve and double them.
func windowAttributes(op gorgonia.Op) ([]attribute, error) {
	w, err := windowOf(op)
	if err != nil {
		return nil, err
	}
	same := network.Same(w.Kernel, w.Stride)
	same.OutputPadding = w.OutputPadding
	if w.Kernel > kernels.MaxKernel || w.Stride > 2 || w.Kernel%2 == 0 || w != same && (w.Padding != w.Kernel/2 || w.Surplus != 0) {
		return nil, fmt.Errorf("%w: %v", ErrNoLowering, op)
	}
	return []attribute{intAttr("kernel", w.Kernel), intAttr("stride", w.Stride), intAttr("padding", w.Padding)}, nil
}

func lowerLayer(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	return l.layer(n, in, kernels.RectifyNone, value{})
}

// layer lowers a convolution of either direction from its operands (image, kernel, and a
// bias if there is one), with the ReLU or ReLU6 behind it, or with the derivative of the
// ReLU before it, whose result is the mask.
func (l *lowering) layer(n *gorgonia.Node, in []value, rectify int, mask value) (value, error) {
	attrs, err := windowAttributes(n.Op())
	if err != nil {
		return value{}, err
	}
	op := kernels.Conv
	switch n.Op().(type) {
	case network.ConvTranspose2D, network.ConvInputGrad:
		op = kernels.ConvTranspose
	}
	in[0] = l.channelsLast(l.expand(in[0], operandShape(n, 0)))
	for len(in) < 3 {
		in = append(in, value{})
	}
	if mask.name != "" {
		mask = l.channelsLast(mask)
	}
	in = append(in, mask, l.version)
	for in[len(in)-1].name == "" {
		in = in[:len(in)-1]
	}
	attrs = append(attrs, intAttr("rectify", rectify), flagAttr("fixed", l.fixed))
	out := l.kernel(op, n.Shape(), in, attrs...)
	if out.shape[1] == 1 {
		s := out.shape
		return l.op("Reshape", s, []value{out, l.ints(0, s[1], s[2], s[3])}), nil
	}
	out.last = true
	return out, nil
}

// enlargedJoin lowers images that are enlarged and put over each other, by steps of
// network.Enlarge and network.Join, to one operator: its result has channels last, and is
// neither enlarged nor joined a piece at a time. Of other joins it says that they are none.
func (l *lowering) enlargedJoin(n *gorgonia.Node) (value, bool, error) {
	kind := func(n *gorgonia.Node) network.Kind {
		op, _ := n.Op().(network.ScoringOp)
		return op.Kind
	}
	var parts gorgonia.Nodes // the last first
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
	out.last = true
	return out, true, nil
}

// joined lowers several nodes to one operator where package kernels has one: a ReLU with
// the convolution before it, the derivative of a ReLU with the convolution's derivative
// that comes to it, enlarged images with what joins them, the convolutions of an inverted
// residual block, and what normalizes an image with the change of its layout. Each saves passes over the
// image. It tells whether it did.
func (l *lowering) joined(n *gorgonia.Node) (value, bool, error) {
	if !l.processor {
		return value{}, false, nil
	}
	switch n.Op().(type) {
	case network.ReLU:
		return l.join(operandOf(n, 0), func(layer *gorgonia.Node, in []value) (value, error) {
			return l.layer(layer, in, kernels.Rectify, value{})
		})
	case network.ReLU6:
		return l.join(operandOf(n, 0), func(layer *gorgonia.Node, in []value) (value, error) {
			return l.layer(layer, in, kernels.RectifySix, value{})
		})
	case network.ReLUGrad:
		return l.join(operandOf(n, 1), func(layer *gorgonia.Node, in []value) (value, error) {
			mask, err := l.lower(operandOf(n, 0))
			if err != nil {
				return value{}, err
			}
			return l.layer(layer, in, kernels.RectifyNone, mask)
		})
	case network.ScoringOp:
		return l.enlargedJoin(n)
	}
	if v, ok, err := l.normalized(n); ok || err != nil {
		return v, ok, err
	}
	return l.invertedResidual(n)
}

// join lowers the operands of a layer and has it emitted, unless the node is none, or
// was emitted by itself.
func (l *lowering) join(layer *gorgonia.Node, emit func(*gorgonia.Node, []value) (value, error)) (value, bool, error) {
	if _, ok := l.done[layer]; ok || layer.Op() == nil {
		return value{}, false, nil
	}
	switch layer.Op().(type) {
	case network.Conv2D, network.ConvTranspose2D, network.ConvInputGrad, network.ConvTransposeInputGrad:
	default:
		return value{}, false, nil
	}
	in, err := l.operands(layer)
	if err != nil || !l.worthKernel(layer, in) {
		return value{}, false, err
	}
	v, err := emit(layer, in)
	return v, err == nil, err
}

// byElement are Gorgonia's operators that work element by element.
var byElement = []string{"sigmoid", "neg", "sqrt", "square", "+", "-", "⊙", "÷"}

// worksOnChannelsLast says whether an operator that package kernels has not takes images
// with channels last as they are: it works element by element, on operands in the same
// layout or of one element, or adds everything up.
func worksOnChannelsLast(op gorgonia.Op, in []value) bool {
	single := func(v value) bool { return !slices.ContainsFunc(v.shape, func(d int) bool { return d != 1 }) }
	if slices.ContainsFunc(in, func(v value) bool { return !v.last && !single(v) }) {
		return false
	}
	switch op := op.(type) {
	case network.ReLU, network.ReLUGrad, network.ReLU6:
		return true
	case network.ScoringOp:
		return op.Kind == network.Softplus
	default:
		name := fmt.Sprint(op)
		return slices.ContainsFunc(byElement, func(s string) bool { return strings.HasPrefix(name, s) }) ||
			strings.HasPrefix(name, "Σ[0 1 2 3]")
	}
}

// channelsFirst is the value in ONNX's own layout.
func (l *lowering) channelsFirst(v value) value {
	if !v.last {
		return v
	}
	return l.op("Transpose", v.shape, []value{v}, intsAttr("perm", 0, 3, 1, 2))
}

// worthwhile is from how many products a pixel on package kernels' convolution pays for
// bringing an image to its layout. Of those that find the energies of a place the largest
// has 784, by one channel, which ONNX Runtime's own does as fast; of the network's the
// smallest has 864.
const worthwhile = 800

// worthKernel says whether package kernels' operator is to be used for a node that it has
// one for: for all of a training's, as nothing else is between them.
func (l *lowering) worthKernel(n *gorgonia.Node, in []value) bool {
	if !l.processor || !l.fixed {
		return l.processor
	}
	switch n.Op().(type) {
	case network.Conv2D, network.ConvTranspose2D, network.ConvInputGrad, network.ConvTransposeInputGrad:
		if _, err := windowAttributes(n.Op()); err != nil {
			return false
		}
		return in[0].last || tensor.Shape(operandShape(n, 1)).TotalSize() >= worthwhile
	}
	return true
}
