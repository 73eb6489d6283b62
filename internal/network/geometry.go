package network

import (
	"fmt"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Window is the geometry that a convolution and its transpose share: kernel
// side, stride and zero padding, the same in both directions.
//
// A convolution maps a side n to (n + 2·Padding − Kernel)/Stride + 1; its
// transpose maps n to (n−1)·Stride − 2·Padding + Kernel + OutputPadding, both as
// in PyTorch's documentation of Conv2d and ConvTranspose2d.
type Window struct {
	Kernel, Stride, Padding int
	// OutputPadding is the surplus rows and columns at the bottom and right of
	// a transposed convolution's result, which decide among the sizes that a
	// convolution of this stride maps to the same one.
	OutputPadding int
}

// Half is the window of every layer here: 3×3, stride 2, padding 1. It halves
// an even side, and its transpose doubles it.
func Half() Window { return Window{Kernel: 3, Stride: 2, Padding: 1, OutputPadding: 1} }

// Down is the side a convolution gives for n.
func (w Window) Down(n int) int { return (n+2*w.Padding-w.Kernel)/w.Stride + 1 }

// Up is the side a transposed convolution gives for n.
func (w Window) Up(n int) int {
	return (n-1)*w.Stride - 2*w.Padding + w.Kernel + w.OutputPadding
}

func (w Window) String() string {
	return fmt.Sprintf("k%d s%d p%d op%d", w.Kernel, w.Stride, w.Padding, w.OutputPadding)
}

// taps calls f for every pair of a position in the large image (n of the up
// side) and the small one that a kernel tap connects: large = small·Stride −
// Padding + tap, where it lies inside. Both directions of a convolution and its
// weight gradient walk the same pairs.
func (w Window) taps(small, large int, f func(s, l, tap int)) {
	for s := range small {
		for t := range w.Kernel {
			if l := s*w.Stride - w.Padding + t; l >= 0 && l < large {
				f(s, l, t)
			}
		}
	}
}

// dims4 gives the four sizes of an operand's shape, or an error that names it.
func dims4(op, operand string, d gorgonia.DimSizer) ([4]int, error) {
	s, ok := d.(tensor.Shape)
	if !ok || s.Dims() != 4 {
		return [4]int{}, fmt.Errorf("%s: %s has shape %v, expected four dimensions", op, operand, d)
	}
	return [4]int{s[0], s[1], s[2], s[3]}, nil
}

// dense gives an operand's float32 elements in row-major order.
func dense(op, operand string, v gorgonia.Value) ([]float32, tensor.Shape, error) {
	t, ok := v.(*tensor.Dense)
	if !ok {
		return nil, nil, fmt.Errorf("%s: %s is a %T, expected a dense tensor", op, operand, v)
	}
	if t.RequiresIterator() || t.DataOrder().IsColMajor() {
		t = t.Materialize().(*tensor.Dense)
	}
	data, ok := t.Data().([]float32)
	if !ok {
		return nil, nil, fmt.Errorf("%s: %s holds %v, expected float32", op, operand, t.Dtype())
	}
	return data, t.Shape(), nil
}

func newDense(data []float32, shape ...int) *tensor.Dense {
	return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(data))
}
