package exporter

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// windowOf is the geometry of the convolutions in package network.
func windowOf(op gorgonia.Op) (network.Window, error) {
	switch op := op.(type) {
	case network.Conv2D:
		return op.Window, nil
	case network.ConvTranspose2D:
		return op.Window, nil
	case network.ConvInputGrad:
		return op.Window, nil
	case network.ConvTransposeInputGrad:
		return op.Window, nil
	case network.ConvWeightGrad:
		return op.Window, nil
	case network.DepthwiseConv2D:
		return op.Window, nil
	}
	return network.Window{}, fmt.Errorf("%w: %v has no window", ErrNoLowering, op)
}

func windowAttrs(w network.Window) []attribute {
	return []attribute{
		intsAttr("kernel_shape", w.Kernel, w.Kernel),
		intsAttr("strides", w.Stride, w.Stride),
		intsAttr("pads", w.Padding, w.Padding, w.Padding+w.Surplus, w.Padding+w.Surplus),
	}
}

// lowerConv serves the convolution (x, weight, bias) and the derivative of the
// transposed one (gradient, weight): both walk from the large image to the
// small one, and PyTorch's weight layouts are ONNX's.
func lowerConv(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, err := windowOf(n.Op())
	if err != nil {
		return value{}, err
	}
	in[0] = l.expand(in[0], operandShape(n, 0))
	return l.op("Conv", n.Shape(), in, windowAttrs(w)...), nil
}

// lowerDepthwise lowers a convolution of as many groups as channels (x, weight,
// bias).
func lowerDepthwise(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, err := windowOf(n.Op())
	if err != nil {
		return value{}, err
	}
	in[0] = l.expand(in[0], operandShape(n, 0))
	attrs := append(windowAttrs(w), intAttr("group", n.Shape()[1]))
	return l.op("Conv", n.Shape(), in, attrs...), nil
}

// lowerConvInputGrad lowers the derivative of the plain convolution (gradient,
// weight).
func lowerConvInputGrad(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, err := windowOf(n.Op())
	if err != nil {
		return value{}, err
	}
	if w.Stride == 1 && w.Kernel == 2*w.Padding+1 {
		return lowerUnitStrideInputGrad(l, n, in, w)
	}
	return lowerConvTranspose(l, n, in)
}

// lowerConvTranspose serves the transposed convolution (x, weight, bias) and
// the derivative of the plain one (gradient, weight).
func lowerConvTranspose(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, err := windowOf(n.Op())
	if err != nil {
		return value{}, err
	}
	in[0] = l.expand(in[0], operandShape(n, 0))
	attrs := append(windowAttrs(w), intsAttr("output_padding", w.OutputPadding, w.OutputPadding))
	return l.op("ConvTranspose", n.Shape(), in, attrs...), nil
}

// lowerChannelSum adds up images and pixels of each channel.
func lowerChannelSum(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	x := l.expand(in[0], operandShape(n, 0))
	return l.op("ReduceSum", n.Shape(), []value{x, l.ints(0, 2, 3)}, intAttr("keepdims", 0)), nil
}

// lowerConvWeightGrad lowers the weight gradient of a 3×3 kernel of stride 2
// and padding 1 as matrix products.
//
// SpaceToDepth(2) sorts the large image into four phases (even or odd row, even
// or odd column), each of the small image's size. A tap of the kernel then
// reads one phase, shifted by nothing or by one pixel:
//
//	row of the kernel 0 → odd rows, one up;  1 → even rows;  2 → odd rows
//
// and columns alike. So the nine taps are four products, by shift: (0,0) with
// all four phases, (−1,0) with the odd rows, (0,−1) with the odd columns,
// (−1,−1) with odd rows and columns. No product is wasted and every copy is
// contiguous; on 2 cores this takes half the time of the textbook's dilated
// convolution of transposed tensors.
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
	// Channels of the phases: (row parity·2 + column parity)·cl + channel.
	phases := l.op("SpaceToDepth", []int{batch, 4 * cl, h, wd}, []value{l.expand(in[1], big)}, intAttr("blocksize", 2))
	padded := l.op("Pad", []int{batch, 4 * cl, h + 1, wd + 1}, []value{phases, l.ints(0, 0, 1, 1, 0, 0, 0, 0)})
	shifted := func(from, to, row, col int) value {
		return l.op("Slice", []int{batch, (to - from) * cl, h, wd}, []value{padded,
			l.ints(from*cl, row, col), l.ints(to*cl, row+h, col+wd), l.ints(1, 2, 3)})
	}
	// product gives, for each of the c channels of x, its correlation with
	// every channel of the small image: cs×c.
	product := func(x value, c int) (value, error) {
		m, err := l.microsoftOp("FusedMatMul", []int{batch, cs, c}, []value{small, flat(x, c)}, intAttr("transB", 1))
		if err != nil || batch == 1 {
			return l.op("Reshape", []int{cs, c}, []value{m, l.ints(cs, c)}), err
		}
		return l.op("ReduceSum", []int{cs, c}, []value{m, l.ints(0)}, intAttr("keepdims", 0)), nil
	}
	// Names: which rows and columns of the phases, then the shift they are read at.
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
