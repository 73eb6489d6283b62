package network

import (
	"fmt"
	"hash"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// DepthwiseConv2D is a convolution of each channel by itself, PyTorch's Conv2d
// with as many groups as channels: inputs x (N×C×H×W), weight (C×1×K×K) and bias
// (C), result N×C×h×w with h and w by Window.Down.
type DepthwiseConv2D struct {
	layer
	Window Window
}

// DepthwiseInputGrad is its derivative with regard to x: inputs gradient
// (N×C×h×w) and weight (C×1×K×K), result N×C×H×W.
type DepthwiseInputGrad struct {
	pair
	Window Window
}

// DepthwiseWeightGrad is its derivative with regard to the weight: inputs gradient
// (N×C×h×w) and x (N×C×H×W), result C×1×K×K.
type DepthwiseWeightGrad struct {
	pair
	Window Window
}

// ConvolveDepthwise applies DepthwiseConv2D.
func ConvolveDepthwise(x, weight, bias *gorgonia.Node, w Window) (*gorgonia.Node, error) {
	return gorgonia.ApplyOp(DepthwiseConv2D{Window: w}, x, weight, bias)
}

// InferShape gives N×C×h×w.
func (op DepthwiseConv2D) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	x, k, err := convOperands(op, in)
	if err != nil {
		return nil, err
	}
	if err := depthwiseFits(op, k, x[1], op.Window); err != nil {
		return nil, err
	}
	return tensor.Shape{x[0], x[1], op.Window.Down(x[2]), op.Window.Down(x[3])}, nil
}

// depthwiseFits returns an error unless a weight is of so many channels and of the
// window's kernel.
func depthwiseFits(op gorgonia.Op, weight [4]int, channels int, w Window) error {
	if weight != [4]int{channels, 1, w.Kernel, w.Kernel} {
		return fmt.Errorf("%v: weight %v for %d channels", op, weight, channels)
	}
	return nil
}

// Do is the reference implementation.
func (op DepthwiseConv2D) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	x, k, b, s, err := convValues(op, in)
	if err != nil {
		return nil, err
	}
	out := make([]float32, s.TotalSize())
	fillChannels(out, s, b)
	eachPlaneRow(s, in[0].Shape(), op.Window, func(s, l, n, stride, tap int) {
		f := k[tap]
		for i := range out[s : s+n] {
			out[s+i] += x[l+i*stride] * f
		}
	})
	return newDense(out, s...), nil
}

// SymDiff gives the derivatives: to x DepthwiseInputGrad, to the weight
// DepthwiseWeightGrad, to the bias ChannelSum.
func (op DepthwiseConv2D) SymDiff(in gorgonia.Nodes, _, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	w, err := op.Window.forDerivative(op, in[0].Shape())
	if err != nil {
		return nil, err
	}
	dx, err := gorgonia.ApplyOp(DepthwiseInputGrad{Window: w}, grad, in[1])
	if err != nil {
		return nil, err
	}
	dw, err := gorgonia.ApplyOp(DepthwiseWeightGrad{Window: w}, grad, in[0])
	if err != nil {
		return nil, err
	}
	db, err := gorgonia.ApplyOp(ChannelSum{}, grad)
	if err != nil {
		return nil, err
	}
	return gorgonia.Nodes{dx, dw, db}, nil
}

// WriteHash writes what tells this operator from others.
func (op DepthwiseConv2D) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode is the hash of the description.
func (op DepthwiseConv2D) Hashcode() uint32 { return hashcode(op) }

func (op DepthwiseConv2D) String() string { return "DepthwiseConv2D " + op.Window.String() }

// InferShape gives N×C×H×W.
func (op DepthwiseInputGrad) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	g, k, err := gradOperands(op, "gradient", "weight", in)
	if err != nil {
		return nil, err
	}
	if err := depthwiseFits(op, k, g[1], op.Window); err != nil {
		return nil, err
	}
	return tensor.Shape{g[0], g[1], op.Window.Up(g[2]), op.Window.Up(g[3])}, nil
}

// Do is the reference implementation.
func (op DepthwiseInputGrad) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	g, k, s, err := gradValues(op, in)
	if err != nil {
		return nil, err
	}
	out := make([]float32, s.TotalSize())
	eachPlaneRow(in[0].Shape(), s, op.Window, func(s, l, n, stride, tap int) {
		f := k[tap]
		for i, v := range g[s : s+n] {
			out[l+i*stride] += v * f
		}
	})
	return newDense(out, s...), nil
}

// WriteHash writes what tells this operator from others.
func (op DepthwiseInputGrad) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode is the hash of the description.
func (op DepthwiseInputGrad) Hashcode() uint32 { return hashcode(op) }

func (op DepthwiseInputGrad) String() string { return "DepthwiseInputGrad " + op.Window.String() }

// InferShape gives C×1×K×K.
func (op DepthwiseWeightGrad) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	g, x, err := gradOperands(op, "gradient", "x", in)
	if err != nil {
		return nil, err
	}
	w := op.Window
	if want := [4]int{x[0], x[1], w.Down(x[2]), w.Down(x[3])}; g != want {
		return nil, fmt.Errorf("%v: a gradient %v does not belong to an image %v", op, g, x)
	}
	return tensor.Shape{x[1], 1, w.Kernel, w.Kernel}, nil
}

// Do is the reference implementation.
func (op DepthwiseWeightGrad) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	g, x, s, err := gradValues(op, in)
	if err != nil {
		return nil, err
	}
	sum := make([]float64, s.TotalSize()) // in float64, as in ConvWeightGrad
	eachPlaneRow(in[0].Shape(), in[1].Shape(), op.Window, func(s, l, n, stride, tap int) {
		sum[tap] += products(g[s:s+n], x[l:], stride)
	})
	return newDense(narrow(sum), s...), nil
}

// WriteHash writes what tells this operator from others.
func (op DepthwiseWeightGrad) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode is the hash of the description.
func (op DepthwiseWeightGrad) Hashcode() uint32 { return hashcode(op) }

func (op DepthwiseWeightGrad) String() string { return "DepthwiseWeightGrad " + op.Window.String() }

// eachPlaneRow is eachRow for a depthwise convolution of small images (N×C×h×w)
// and large ones (N×C×H×W), with a kernel of C×1×K×K.
func eachPlaneRow(ss, ls tensor.Shape, w Window, f func(s, l, n, stride, tap int)) {
	for plane := range ss[0] * ss[1] {
		small, large, kernel := plane*ss[2]*ss[3], plane*ls[2]*ls[3], plane%ss[1]*w.Kernel*w.Kernel
		w.rows([2]int(ss[2:4]), [2]int(ls[2:4]), func(s, l, n, stride, tap int) {
			f(small+s, large+l, n, stride, kernel+tap)
		})
	}
}
