package network

import (
	"fmt"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Window is the geometry of a convolution and its transpose: kernel side, stride
// and zero padding, the same along both axes.
//
// A convolution maps a side n to (n + 2·Padding + Surplus − Kernel)/Stride + 1;
// its transpose maps n to (n−1)·Stride − 2·Padding − Surplus + Kernel +
// OutputPadding, both as in PyTorch's documentation of Conv2d and
// ConvTranspose2d, which have no Surplus.
type Window struct {
	Kernel, Stride, Padding int
	// Surplus is the number of rows and columns of zeros by which the padding at
	// the bottom and right exceeds that at the top and left.
	Surplus int
	// OutputPadding is the number of additional rows and columns at the bottom
	// and right of a transposed convolution's result. It selects one of the sizes
	// that a convolution of this stride maps to the same size.
	OutputPadding int
}

// Half returns the window of the autoencoder's layers: 3×3, stride 2, padding 1.
// It halves an even side, and its transpose doubles it.
func Half() Window { return Window{Kernel: 3, Stride: 2, Padding: 1, OutputPadding: 1} }

// Same returns the window of TensorFlow's SAME padding, for sides that are
// multiples of the stride: a convolution divides the side by the stride. If the
// total padding is odd, the surplus zero is at the bottom and right.
func Same(kernel, stride int) Window {
	zeros := max(kernel-stride, 0)
	return Window{Kernel: kernel, Stride: stride, Padding: zeros / 2, Surplus: zeros % 2}
}

// Down returns the side of a convolution's result for an input side of n.
func (w Window) Down(n int) int { return (n+2*w.Padding+w.Surplus-w.Kernel)/w.Stride + 1 }

// Up returns the side of a transposed convolution's result for an input side of
// n.
func (w Window) Up(n int) int {
	return (n-1)*w.Stride - 2*w.Padding - w.Surplus + w.Kernel + w.OutputPadding
}

func (w Window) String() string {
	s := fmt.Sprintf("k%d s%d p%d op%d", w.Kernel, w.Stride, w.Padding, w.OutputPadding)
	if w.Surplus != 0 {
		s += fmt.Sprintf(" +%d", w.Surplus)
	}
	return s
}

// forDerivative returns the window of the derivatives of a convolution of x: with
// the output padding that restores the sides of x. It returns an error if the two
// sides need different output paddings.
func (w Window) forDerivative(op gorgonia.Op, x tensor.Shape) (Window, error) {
	w.OutputPadding = 0
	w.OutputPadding = x[2] - w.Up(w.Down(x[2]))
	if got := w.Up(w.Down(x[3])); got != x[3] {
		return w, fmt.Errorf("%v: the sides of %v need different output paddings", op, x)
	}
	return w, nil
}

// rows calls f for every combination of a row of the small plane and a tap of the
// kernel: elements s to s+n of the small plane are paired with elements l,
// l+stride, … of the large plane. The taps of an element come in order. Planes
// are rows × columns.
func (w Window) rows(small, large [2]int, f func(s, l, n, stride, tap int)) {
	if w.Kernel == 1 && w.Stride == 1 && w.Padding == 0 && small == large {
		f(0, 0, small[0]*small[1], 1, 0) // a plane is one row
		return
	}
	w.taps(small[0], large[0], func(sy, ly, ty int) {
		for tx := range w.Kernel {
			from := max(0, (w.Padding-tx+w.Stride-1)/w.Stride)
			to := min(small[1], (large[1]+w.Padding-tx+w.Stride-1)/w.Stride)
			if from < to {
				f(sy*small[1]+from, ly*large[1]+from*w.Stride-w.Padding+tx, to-from, w.Stride, ty*w.Kernel+tx)
			}
		}
	})
}

// taps calls f for every position s of the small image, position l of the large
// one and tap of the kernel along an axis with l = s·Stride − Padding + tap, if l
// is inside the large image. Convolutions, transposed ones and weight gradients
// iterate over the same pairs.
func (w Window) taps(small, large int, f func(s, l, tap int)) {
	for s := range small {
		for t := range w.Kernel {
			if l := s*w.Stride - w.Padding + t; l >= 0 && l < large {
				f(s, l, t)
			}
		}
	}
}

// dims4 returns the shape of an operand with four dimensions, or an error that
// names the operand.
func dims4(op, operand string, d gorgonia.DimSizer) ([4]int, error) {
	s, ok := d.(tensor.Shape)
	if !ok || s.Dims() != 4 {
		return [4]int{}, fmt.Errorf("%s: %s has shape %v, expected four dimensions", op, operand, d)
	}
	return [4]int{s[0], s[1], s[2], s[3]}, nil
}

// dense returns the float32 elements of an operand in row-major order, and its
// shape.
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
