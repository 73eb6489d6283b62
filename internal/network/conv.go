package network

import (
	"fmt"
	"hash"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Conv2D is PyTorch's Conv2d: inputs x (N×I×H×W), weight (O×I×K×K) and bias
// (O), result N×O×h×w. Window.Down returns h and w.
type Conv2D struct {
	layer
	Window Window
}

// ConvTranspose2D is PyTorch's ConvTranspose2d: inputs x (N×I×h×w), weight
// (I×O×K×K) and bias (O), result N×O×H×W. Window.Up returns H and W.
type ConvTranspose2D struct {
	layer
	Window Window
}

// layer implements the methods of Op that all convolutions share.
type layer struct{ pure }

// Arity returns 3: x, weight and bias.
func (layer) Arity() int { return 3 }

// Type returns Tensor-4 a → Tensor-4 a → Vector a → Tensor-4 a.
func (layer) Type() hm.Type {
	return hm.NewFnType(tensorOf(4), tensorOf(4), tensorOf(1), tensorOf(4))
}

// DiffWRT returns true for every input.
func (layer) DiffWRT(n int) []bool { return all(n) }

// Convolve applies Conv2D.
func Convolve(x, weight, bias *gorgonia.Node, w Window) (*gorgonia.Node, error) {
	return gorgonia.ApplyOp(Conv2D{Window: w}, x, weight, bias)
}

// ConvolveTransposed applies ConvTranspose2D.
func ConvolveTransposed(x, weight, bias *gorgonia.Node, w Window) (*gorgonia.Node, error) {
	return gorgonia.ApplyOp(ConvTranspose2D{Window: w}, x, weight, bias)
}

// InferShape returns N×O×h×w.
func (op Conv2D) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	x, k, err := convOperands(op, in)
	if err != nil {
		return nil, err
	}
	if k[1] != x[1] {
		return nil, fmt.Errorf("%v: weight %v does not match the %d channels of x", op, k, x[1])
	}
	return tensor.Shape{x[0], k[0], op.Window.Down(x[2]), op.Window.Down(x[3])}, nil
}

// Do computes the operator. It is the reference implementation.
func (op Conv2D) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	x, k, b, s, err := convValues(op, in)
	if err != nil {
		return nil, err
	}
	out := make([]float32, s.TotalSize())
	xs := in[0].Shape()
	fillChannels(out, s, b)
	downConvolve(out, s, x, xs, k, op.Window)
	return newDense(out, s...), nil
}

// SymDiff returns the derivatives: ConvInputGrad for x, ConvWeightGrad for the
// weight, ChannelSum for the bias.
func (op Conv2D) SymDiff(in gorgonia.Nodes, _, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	w, err := op.Window.forDerivative(op, in[0].Shape())
	if err != nil {
		return nil, err
	}
	return derivatives(ConvInputGrad{Window: w}, in[1], grad, in[0], grad, w)
}

// WriteHash hashes the description.
func (op Conv2D) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op Conv2D) Hashcode() uint32 { return hashcode(op) }

func (op Conv2D) String() string { return "Conv2D " + op.Window.String() }

// InferShape returns N×O×H×W.
func (op ConvTranspose2D) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	x, k, err := convOperands(op, in)
	if err != nil {
		return nil, err
	}
	if k[0] != x[1] {
		return nil, fmt.Errorf("%v: weight %v does not match the %d channels of x", op, k, x[1])
	}
	return tensor.Shape{x[0], k[1], op.Window.Up(x[2]), op.Window.Up(x[3])}, nil
}

// Do computes the operator. It is the reference implementation.
func (op ConvTranspose2D) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	x, k, b, s, err := convValues(op, in)
	if err != nil {
		return nil, err
	}
	out := make([]float32, s.TotalSize())
	fillChannels(out, s, b)
	upConvolve(out, s, x, in[0].Shape(), k, op.Window)
	return newDense(out, s...), nil
}

// SymDiff returns the derivatives: ConvTransposeInputGrad for x, ConvWeightGrad
// with x and gradient exchanged for the weight, ChannelSum for the bias.
func (op ConvTranspose2D) SymDiff(in gorgonia.Nodes, _, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	return derivatives(ConvTransposeInputGrad{Window: op.Window}, in[1], in[0], grad, grad, op.Window)
}

// WriteHash hashes the description.
func (op ConvTranspose2D) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op ConvTranspose2D) Hashcode() uint32 { return hashcode(op) }

func (op ConvTranspose2D) String() string { return "ConvTranspose2D " + op.Window.String() }

// derivatives returns the derivatives of a convolution or a transposed one with
// respect to x, weight and bias.
func derivatives(inputGrad gorgonia.Op, weight, small, large, grad *gorgonia.Node, w Window) (gorgonia.Nodes, error) {
	dx, err := gorgonia.ApplyOp(inputGrad, grad, weight)
	if err != nil {
		return nil, err
	}
	dw, err := gorgonia.ApplyOp(ConvWeightGrad{Window: w}, small, large)
	if err != nil {
		return nil, err
	}
	db, err := gorgonia.ApplyOp(ChannelSum{}, grad)
	if err != nil {
		return nil, err
	}
	return gorgonia.Nodes{dx, dw, db}, nil
}

// convOperands returns the shapes of x and the weight. Do checks the length of
// the bias.
func convOperands(op gorgonia.Op, in []gorgonia.DimSizer) (x, k [4]int, err error) {
	if err = arity(op, len(in)); err != nil {
		return
	}
	if x, err = dims4(op.String(), "x", in[0]); err != nil {
		return
	}
	k, err = dims4(op.String(), "weight", in[1])
	return
}

// convValues returns the elements of the three inputs and the result's shape.
func convValues(op gorgonia.Op, in []gorgonia.Value) (x, k, b []float32, out tensor.Shape, err error) {
	if err = arity(op, len(in)); err != nil {
		return
	}
	if x, _, err = dense(op.String(), "x", in[0]); err != nil {
		return
	}
	if k, _, err = dense(op.String(), "weight", in[1]); err != nil {
		return
	}
	if b, _, err = dense(op.String(), "bias", in[2]); err != nil {
		return
	}
	if out, err = op.InferShape(in[0].Shape(), in[1].Shape(), in[2].Shape()); err != nil {
		return
	}
	if len(b) != out[1] {
		err = fmt.Errorf("%v: %d biases for %d channels", op, len(b), out[1])
	}
	return
}

// fillChannels sets every plane of an N×C×H×W result to its channel's bias.
func fillChannels(out []float32, s tensor.Shape, bias []float32) {
	plane := s[2] * s[3]
	for i := range out {
		out[i] = bias[i/plane%s[1]]
	}
}

// downConvolve adds to small (N×O×h×w) the convolution of large (N×I×H×W) with
// kernel (O×I×K×K).
func downConvolve(small []float32, ss tensor.Shape, large []float32, ls tensor.Shape, kernel []float32, w Window) {
	eachRow(ss, ls, w, func(s, l, n, stride, k int) {
		f := kernel[k]
		for i := range small[s : s+n] {
			small[s+i] += large[l+i*stride] * f
		}
	})
}

// upConvolve adds to large (N×I×H×W) the transposed convolution of small
// (N×O×h×w) with kernel (O×I×K×K).
func upConvolve(large []float32, ls tensor.Shape, small []float32, ss tensor.Shape, kernel []float32, w Window) {
	eachRow(ss, ls, w, func(s, l, n, stride, k int) {
		f := kernel[k]
		for i, v := range small[s : s+n] {
			large[l+i*stride] += v * f
		}
	})
}

// eachRow calls f for every row of products of a convolution: with offsets into
// the small and the large image, the number of products, their distance in the
// large image, and an offset into the kernel (small channels × large channels ×
// K × K).
func eachRow(ss, ls tensor.Shape, w Window, f func(s, l, n, stride, k int)) {
	kk := w.Kernel * w.Kernel
	for n := range ss[0] {
		for o := range ss[1] {
			for i := range ls[1] {
				small := (n*ss[1] + o) * ss[2] * ss[3]
				large := (n*ls[1] + i) * ls[2] * ls[3]
				kernel := (o*ls[1] + i) * kk
				w.rows([2]int(ss[2:4]), [2]int(ls[2:4]), func(s, l, n, stride, tap int) {
					f(small+s, large+l, n, stride, kernel+tap)
				})
			}
		}
	}
}
