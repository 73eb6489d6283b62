package network

import (
	"fmt"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Window is the geometry that a convolution and its transpose share: kernel
// side, stride and zero padding, the same in both directions.
//
// A convolution maps a side n to (n + 2·Padding + Surplus − Kernel)/Stride + 1;
// its transpose maps n to (n−1)·Stride − 2·Padding − Surplus + Kernel +
// OutputPadding, both as in PyTorch's documentation of Conv2d and
// ConvTranspose2d, which have no Surplus.
type Window struct {
	Kernel, Stride, Padding int
	// Surplus is how many more rows and columns of zeros there are at the bottom
	// and right than at the top and left.
	Surplus int
	// OutputPadding is the surplus rows and columns at the bottom and right of
	// a transposed convolution's result, which decide among the sizes that a
	// convolution of this stride maps to the same one.
	OutputPadding int
}

// Half is the window of every layer here: 3×3, stride 2, padding 1. It halves
// an even side, and its transpose doubles it.
func Half() Window { return Window{Kernel: 3, Stride: 2, Padding: 1, OutputPadding: 1} }

// Same is the window that TensorFlow calls SAME, for sides that are multiples of
// the stride: a convolution gives the side divided by the stride. Where the zeros
// are odd in number, the surplus one is at the bottom and right.
func Same(kernel, stride int) Window {
	zeros := max(kernel-stride, 0)
	return Window{Kernel: kernel, Stride: stride, Padding: zeros / 2, Surplus: zeros % 2}
}

// Down is the side a convolution gives for n.
func (w Window) Down(n int) int { return (n+2*w.Padding+w.Surplus-w.Kernel)/w.Stride + 1 }

// Up is the side a transposed convolution gives for n.
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

// forDerivative is the window of a convolution's derivatives for an image of
// those sides: with the output padding that leads back to them. It is an error
// where the two differ in it.
func (w Window) forDerivative(op gorgonia.Op, x tensor.Shape) (Window, error) {
	w.OutputPadding = 0
	w.OutputPadding = x[2] - w.Up(w.Down(x[2]))
	if got := w.Up(w.Down(x[3])); got != x[3] {
		return w, fmt.Errorf("%v: the sides of %v leave different remainders", op, x)
	}
	return w, nil
}

// rows calls f for every row of a small plane and tap of the kernel that connects
// it with a row of the large plane: n numbers of the small one from s on meet
// those of the large one at l, l + stride and so on. For each number the taps come
// in their order. Planes are given by rows and columns.
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
