package network

import (
	"fmt"
	"hash"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// pair implements the methods of Op that operators of two four-dimensional
// inputs share.
type pair struct{ pure }

// Arity returns 2.
func (pair) Arity() int { return 2 }

// Type returns Tensor-4 a → Tensor-4 a → Tensor-4 a.
func (pair) Type() hm.Type { return hm.NewFnType(tensorOf(4), tensorOf(4), tensorOf(4)) }

// ConvInputGrad is the derivative of a convolution with respect to its input:
// inputs gradient (N×O×h×w) and weight (O×I×K×K), result N×I×H×W.
type ConvInputGrad struct {
	pair
	Window Window
}

// ConvTransposeInputGrad is the derivative of a transposed convolution with
// respect to its input: inputs gradient (N×O×H×W) and weight (I×O×K×K), result
// N×I×h×w.
type ConvTransposeInputGrad struct {
	pair
	Window Window
}

// ConvWeightGrad is the derivative with respect to the kernel: inputs are a small
// image (N×S×h×w) and a large one (N×L×H×W), the result is S×L×K×K. For a
// convolution, the gradient is the small image and the input is the large one;
// for a transposed convolution, they are exchanged.
type ConvWeightGrad struct {
	pair
	Window Window
}

// ChannelSum is the sum of each channel of N×C×H×W over images and pixels: the
// derivative with respect to a bias. The result has C elements.
type ChannelSum struct{ pure }

// InferShape returns N×I×H×W.
func (op ConvInputGrad) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	g, k, err := gradOperands(op, "gradient", "weight", in)
	if err != nil {
		return nil, err
	}
	if g[1] != k[0] {
		return nil, fmt.Errorf("%v: weight %v does not match the %d channels of the gradient", op, k, g[1])
	}
	return tensor.Shape{g[0], k[1], op.Window.Up(g[2]), op.Window.Up(g[3])}, nil
}

// Do computes the operator. It is the reference implementation.
func (op ConvInputGrad) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	g, k, s, err := gradValues(op, in)
	if err != nil {
		return nil, err
	}
	out := make([]float32, s.TotalSize())
	upConvolve(out, s, g, in[0].Shape(), k, op.Window)
	return newDense(out, s...), nil
}

// WriteHash hashes the description.
func (op ConvInputGrad) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op ConvInputGrad) Hashcode() uint32 { return hashcode(op) }

func (op ConvInputGrad) String() string { return "ConvInputGrad " + op.Window.String() }

// InferShape returns N×I×h×w.
func (op ConvTransposeInputGrad) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	g, k, err := gradOperands(op, "gradient", "weight", in)
	if err != nil {
		return nil, err
	}
	if g[1] != k[1] {
		return nil, fmt.Errorf("%v: weight %v does not match the %d channels of the gradient", op, k, g[1])
	}
	return tensor.Shape{g[0], k[0], op.Window.Down(g[2]), op.Window.Down(g[3])}, nil
}

// Do computes the operator. It is the reference implementation.
func (op ConvTransposeInputGrad) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	g, k, s, err := gradValues(op, in)
	if err != nil {
		return nil, err
	}
	out := make([]float32, s.TotalSize())
	downConvolve(out, s, g, in[0].Shape(), k, op.Window)
	return newDense(out, s...), nil
}

// WriteHash hashes the description.
func (op ConvTransposeInputGrad) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op ConvTransposeInputGrad) Hashcode() uint32 { return hashcode(op) }

func (op ConvTransposeInputGrad) String() string {
	return "ConvTransposeInputGrad " + op.Window.String()
}

// InferShape returns S×L×K×K.
func (op ConvWeightGrad) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	s, l, err := gradOperands(op, "small image", "large image", in)
	if err != nil {
		return nil, err
	}
	w := op.Window
	if s[0] != l[0] || s[2] != w.Down(l[2]) || s[3] != w.Down(l[3]) {
		return nil, fmt.Errorf("%v: the small image %v does not match the large one %v", op, s, l)
	}
	return tensor.Shape{s[1], l[1], w.Kernel, w.Kernel}, nil
}

// Do computes the operator. It is the reference implementation.
func (op ConvWeightGrad) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	small, large, s, err := gradValues(op, in)
	if err != nil {
		return nil, err
	}
	// In float64: every element is a sum over all pixels of all images.
	sum := make([]float64, s.TotalSize())
	eachRow(in[0].Shape(), in[1].Shape(), op.Window, func(s, l, n, stride, k int) {
		sum[k] += products(small[s:s+n], large[l:], stride)
	})
	return newDense(narrow(sum), s...), nil
}

// WriteHash hashes the description.
func (op ConvWeightGrad) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op ConvWeightGrad) Hashcode() uint32 { return hashcode(op) }

func (op ConvWeightGrad) String() string { return "ConvWeightGrad " + op.Window.String() }

// Arity returns 1: the gradient.
func (ChannelSum) Arity() int { return 1 }

// Type returns Tensor-4 a → Vector a.
func (ChannelSum) Type() hm.Type { return hm.NewFnType(tensorOf(4), tensorOf(1)) }

// InferShape returns C.
func (op ChannelSum) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	g, err := dims4(op.String(), "gradient", in[0])
	if err != nil {
		return nil, err
	}
	return tensor.Shape{g[1]}, nil
}

// Do computes the operator. It is the reference implementation.
func (op ChannelSum) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	g, s, err := dense(op.String(), "gradient", in[0])
	if err != nil {
		return nil, err
	}
	sum := make([]float64, s[1])
	plane := s[2] * s[3]
	for i, v := range g {
		sum[i/plane%s[1]] += float64(v)
	}
	return newDense(narrow(sum), s[1]), nil
}

// WriteHash hashes the description.
func (op ChannelSum) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op ChannelSum) Hashcode() uint32 { return hashcode(op) }

func (ChannelSum) String() string { return "ChannelSum" }

func gradOperands(op gorgonia.Op, first, second string, in []gorgonia.DimSizer) (a, b [4]int, err error) {
	if err = arity(op, len(in)); err != nil {
		return
	}
	if a, err = dims4(op.String(), first, in[0]); err != nil {
		return
	}
	b, err = dims4(op.String(), second, in[1])
	return
}

func gradValues(op gorgonia.Op, in []gorgonia.Value) (a, b []float32, out tensor.Shape, err error) {
	if err = arity(op, len(in)); err != nil {
		return
	}
	if a, _, err = dense(op.String(), "first input", in[0]); err != nil {
		return
	}
	if b, _, err = dense(op.String(), "second input", in[1]); err != nil {
		return
	}
	out, err = op.InferShape(in[0].Shape(), in[1].Shape())
	return
}

// products returns the dot product of small and every stride-th element of large.
func products(small, large []float32, stride int) float64 {
	sum := 0.0
	for i, v := range small {
		sum += float64(v) * float64(large[i*stride])
	}
	return sum
}

func narrow(in []float64) []float32 {
	out := make([]float32, len(in))
	for i, v := range in {
		out[i] = float32(v)
	}
	return out
}
