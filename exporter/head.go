package exporter

import (
	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// lowerLogisticLoss is ln(1 + exp y) − t·y.
func lowerLogisticLoss(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	s := n.Shape()
	y, t := l.expand(in[0], s), l.expand(in[1], s)
	return l.op("Sub", s, []value{l.op("Softplus", s, []value{y}), l.op("Mul", s, []value{t, y})}), nil
}

// lowerUnitStrideWeightGrad lowers the weight gradient of a kernel of stride 1
// that keeps the image's sides: for each tap a matrix product with the image
// shifted. A dilated convolution of transposed tensors, the textbook's way, has
// kernels as large as the image.
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

// lowerUnitStrideInputGrad lowers the input gradient of such a kernel as a
// convolution with the kernel turned by 180 degrees and its channels exchanged,
// which takes less than half of ConvTranspose's time.
func lowerUnitStrideInputGrad(l *lowering, n *gorgonia.Node, in []value, w network.Window) (value, error) {
	k := operandShape(n, 1)
	o, i := k[0], k[1]
	last := -w.Kernel - 1 // one before the first, counted from the end
	turned := l.op("Slice", k, []value{in[1], l.ints(-1, -1), l.ints(last, last), l.ints(2, 3), l.ints(-1, -1)})
	exchanged := l.op("Transpose", []int{i, o, w.Kernel, w.Kernel}, []value{turned}, intsAttr("perm", 1, 0, 2, 3))
	x := l.expand(in[0], operandShape(n, 0))
	return l.op("Conv", n.Shape(), []value{x, exchanged}, windowAttrs(w)...), nil
}
