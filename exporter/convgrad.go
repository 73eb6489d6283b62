package exporter

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// lowerChannelSum sums each channel over all images and pixels.
func lowerChannelSum(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	x := l.expand(in[0], operandShape(n, 0))
	return l.op("ReduceSum", n.Shape(), []value{x, l.ints(0, 2, 3)}, intAttr("keepdims", 0)), nil
}

// lowerConvWeightGrad lowers the weight gradient of a 3×3 kernel of stride 2 and padding 1
// to matrix products.
//
// SpaceToDepth(2) splits the large image into four phases (even or odd row, even or odd
// column), each of the small image's size. Each tap of the kernel then reads one phase,
// shifted by zero or one pixel:
//
//	kernel row 0 → odd rows, shifted up by one;  1 → even rows;  2 → odd rows
//
// and likewise for columns. The nine taps need four shifts: (0,0) with all four phases,
// (−1,0) with the odd rows, (0,−1) with the odd columns, (−1,−1) with odd rows and
// columns. Every computed product is used and every copy is contiguous. On 2 cores this
// takes half the time of the usual form, a dilated convolution of transposed tensors.
func lowerConvWeightGrad(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, err := windowOf(n.Op())
	if err != nil {
		return value{}, err
	}
	s, big := operandShape(n, 0), operandShape(n, 1)
	if w.Stride == 1 && w.Up(s[2]) == s[2] && w.Up(s[3]) == s[3] {
		return lowerUnitStrideWeightGrad(l, n, in, w)
	}
	batch, cs, h, wd, cl := s[0], s[1], s[2], s[3], big[1]
	if w.Kernel != 3 || w.Stride != 2 || w.Padding != 1 || big[2] != 2*h || big[3] != 2*wd {
		return value{}, fmt.Errorf("%w: %v of %v and %v", ErrNoLowering, n.Op(), s, big)
	}
	pixels := h * wd
	flat := func(v value, c int) value {
		return l.op("Reshape", []int{batch, c, pixels}, []value{v, l.ints(batch, c, pixels)})
	}
	small := flat(l.expand(in[0], s), cs)
	// The channel index in phases is (row parity·2 + column parity)·cl + channel.
	phases := l.op("SpaceToDepth", []int{batch, 4 * cl, h, wd}, []value{l.expand(in[1], big)}, intAttr("blocksize", 2))
	padded := l.op("Pad", []int{batch, 4 * cl, h + 1, wd + 1}, []value{phases, l.ints(0, 0, 1, 1, 0, 0, 0, 0)})
	shifted := func(from, to, row, col int) value {
		return l.op("Slice", []int{batch, (to - from) * cl, h, wd}, []value{padded,
			l.ints(from*cl, row, col), l.ints(to*cl, row+h, col+wd), l.ints(1, 2, 3)})
	}
	// product returns the correlation of every channel of the small image with each of
	// the c channels of x, cs×c.
	product := func(x value, c int) (value, error) {
		m, err := l.microsoftOp("FusedMatMul", []int{batch, cs, c}, []value{small, flat(x, c)}, intAttr("transB", 1))
		if err != nil || batch == 1 {
			return l.op("Reshape", []int{cs, c}, []value{m, l.ints(cs, c)}), err
		}
		return l.op("ReduceSum", []int{cs, c}, []value{m, l.ints(0)}, intAttr("keepdims", 0)), nil
	}
	// The variables are named after the shift; Even and Odd are the row parity.
	still, err := product(phases, 4*cl)
	if err != nil {
		return value{}, err
	}
	up, err := product(shifted(2, 4, 0, 1), 2*cl)
	if err != nil {
		return value{}, err
	}
	leftEven, err := product(shifted(1, 2, 1, 0), cl)
	if err != nil {
		return value{}, err
	}
	leftOdd, err := product(shifted(3, 4, 1, 0), cl)
	if err != nil {
		return value{}, err
	}
	corner, err := product(shifted(3, 4, 0, 0), cl)
	if err != nil {
		return value{}, err
	}
	tap := func(m value, parts int) []value {
		if parts == 1 {
			return []value{m}
		}
		sizes, split := make([][]int, parts), make([]int, parts)
		for i := range parts {
			sizes[i], split[i] = []int{cs, cl}, cl
		}
		return l.ops("", "Split", sizes, []value{m, l.ints(split...)}, intAttr("axis", 1))
	}
	s4, u2 := tap(still, 4), tap(up, 2)
	taps := []value{
		corner, u2[0], u2[1],
		leftEven, s4[0], s4[1],
		leftOdd, s4[2], s4[3],
	}
	for i, t := range taps {
		taps[i] = l.op("Unsqueeze", []int{cs, cl, 1}, []value{t, l.ints(2)})
	}
	nine := l.op("Concat", []int{cs, cl, 9}, taps, intAttr("axis", 2))
	return l.op("Reshape", n.Shape(), []value{nine, l.ints(n.Shape()...)}), nil
}

// lowerUnitStrideWeightGrad lowers the weight gradient of a convolution of stride 1 that
// keeps the image's sides: for each tap, a matrix product with the shifted image. The usual
// form, a dilated convolution of transposed tensors, has kernels as large as the image.
func lowerUnitStrideWeightGrad(l *lowering, n *gorgonia.Node, in []value, w network.Window) (value, error) {
	s, big := operandShape(n, 0), operandShape(n, 1)
	batch, cs, h, wd, cl := s[0], s[1], s[2], s[3], big[1]
	pixels, taps := h*wd, w.Kernel*w.Kernel
	flat := func(v value, c int) value {
		return l.op("Reshape", []int{batch, c, pixels}, []value{v, l.ints(batch, c, pixels)})
	}
	x, small := l.expand(in[1], big), flat(l.expand(in[0], s), cs)
	product := func(x value) (value, error) {
		return l.microsoftOp("FusedMatMul", []int{batch, cs, cl}, []value{small, flat(x, cl)}, intAttr("transB", 1))
	}
	if taps == 1 {
		m, err := product(x)
		if err != nil {
			return value{}, err
		}
		sum := l.op("ReduceSum", []int{cs, cl}, []value{m, l.ints(0)}, intAttr("keepdims", 0))
		return l.op("Reshape", n.Shape(), []value{sum, l.ints(n.Shape()...)}), nil
	}
	p := w.Padding
	padded := l.op("Pad", []int{batch, cl, h + 2*p, wd + 2*p}, []value{x, l.ints(0, 0, p, p, 0, 0, p, p)})
	products := make([]value, taps)
	for i := range taps {
		row, col := i/w.Kernel, i%w.Kernel
		shifted := l.op("Slice", big, []value{padded, l.ints(row, col), l.ints(row+h, col+wd), l.ints(2, 3)})
		var err error
		if products[i], err = product(shifted); err != nil {
			return value{}, err
		}
	}
	m := l.op("Concat", []int{batch, cs, taps * cl}, products, intAttr("axis", 2))
	sum := l.op("ReduceSum", []int{cs, taps * cl}, []value{m, l.ints(0)}, intAttr("keepdims", 0))
	byTap := l.op("Reshape", []int{cs, taps, cl}, []value{sum, l.ints(cs, taps, cl)})
	byChannel := l.op("Transpose", []int{cs, cl, taps}, []value{byTap}, intsAttr("perm", 0, 2, 1))
	return l.op("Reshape", n.Shape(), []value{byChannel, l.ints(n.Shape()...)}), nil
}

// lowerUnitStrideInputGrad lowers the input gradient of a convolution of stride 1 that
// keeps the image's sides to a convolution with the kernel rotated by 180 degrees and its
// input and output channels swapped. It takes less than half of ConvTranspose's time.
func lowerUnitStrideInputGrad(l *lowering, n *gorgonia.Node, in []value, w network.Window) (value, error) {
	k := operandShape(n, 1)
	o, i := k[0], k[1]
	last := -w.Kernel - 1 // Slice excludes the end: one before the first element
	rotated := l.op("Slice", k, []value{in[1], l.ints(-1, -1), l.ints(last, last), l.ints(2, 3), l.ints(-1, -1)})
	swapped := l.op("Transpose", []int{i, o, w.Kernel, w.Kernel}, []value{rotated}, intsAttr("perm", 1, 0, 2, 3))
	x := l.expand(in[0], operandShape(n, 0))
	return l.op("Conv", n.Shape(), []value{x, swapped}, windowAttrs(w)...), nil
}
