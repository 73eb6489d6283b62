package network

import (
	"fmt"
	"hash"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// DepthwiseConv2D is a depthwise convolution, PyTorch's Conv2d with as many groups
// as channels: inputs x (N×C×H×W), weight (C×1×K×K) and bias (C), result N×C×h×w.
// Window.Down returns h and w. It is not differentiable: the backbone is not
// trained.
type DepthwiseConv2D struct {
	constant
	Window Window
}

// ConvolveDepthwise applies DepthwiseConv2D.
func ConvolveDepthwise(x, weight, bias *gorgonia.Node, w Window) (*gorgonia.Node, error) {
	return gorgonia.ApplyOp(DepthwiseConv2D{Window: w}, x, weight, bias)
}

// Arity returns 3: x, weight and bias.
func (DepthwiseConv2D) Arity() int { return layer{}.Arity() }

// Type returns Tensor-4 a → Tensor-4 a → Vector a → Tensor-4 a.
func (DepthwiseConv2D) Type() hm.Type { return layer{}.Type() }

// InferShape returns N×C×h×w.
func (op DepthwiseConv2D) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	x, k, err := convOperands(op, in)
	if err != nil {
		return nil, err
	}
	if k != [4]int{x[1], 1, op.Window.Kernel, op.Window.Kernel} {
		return nil, fmt.Errorf("%v: weight %v for %d channels", op, k, x[1])
	}
	return tensor.Shape{x[0], x[1], op.Window.Down(x[2]), op.Window.Down(x[3])}, nil
}

// Do computes the operator. It is the reference implementation.
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

// WriteHash hashes the description.
func (op DepthwiseConv2D) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op DepthwiseConv2D) Hashcode() uint32 { return hashcode(op) }

func (op DepthwiseConv2D) String() string { return "DepthwiseConv2D " + op.Window.String() }

// eachPlaneRow is eachRow for a depthwise convolution: small images (N×C×h×w),
// large images (N×C×H×W) and a kernel of C×1×K×K.
func eachPlaneRow(ss, ls tensor.Shape, w Window, f func(s, l, n, stride, tap int)) {
	for plane := range ss[0] * ss[1] {
		small, large, kernel := plane*ss[2]*ss[3], plane*ls[2]*ls[3], plane%ss[1]*w.Kernel*w.Kernel
		w.rows([2]int(ss[2:4]), [2]int(ls[2:4]), func(s, l, n, stride, tap int) {
			f(small+s, large+l, n, stride, kernel+tap)
		})
	}
}
