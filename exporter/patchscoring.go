package exporter

import (
	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// patchRules are the rules for the kinds of network.ScoringOp that compute anomaly scores from
// patch features. No rule fixes the number of images.
var patchRules = map[network.Kind]rule{
	network.PatchDistance: lowerPatchDistance,
	network.Nearest:       lowerNearest,
	network.WeightedMean:  lowerWeightedMean,
	network.First: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		return l.op("Slice", n.Shape(), []value{in[0], l.ints(0), l.ints(sizeOf(n)), l.ints(0)}), nil
	},
	network.Crop: lowerCrop, network.CropWidth: lowerCrop, network.CropHeight: lowerCrop,
	network.Average: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		return l.op("GlobalAveragePool", n.Shape(), in), nil
	},
	network.PlaceDeviation: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		s := n.Shape()
		place := l.op("Cast", []int{s[0]}, []value{in[1]}, intAttr("to", int64Type))
		mean := l.op("Gather", s, []value{in[2], place})
		scale := l.op("Gather", []int{s[0], 1, s[2], s[3]}, []value{in[3], place})
		return l.op("Mul", s, []value{l.op("Sub", s, []value{in[0], mean}), scale}), nil
	},
}

// lowerCrop lowers the removal of a border.
func lowerCrop(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, h := n.Op().(network.ScoringOp).Borders()
	s := n.Shape()
	return l.op("Slice", s, []value{in[0], l.ints(h, w), l.ints(h+s[2], w+s[3]), l.ints(2, 3)}), nil
}

// lowerWeightedMean lowers the mean over channels of ((x − offset)·slope)·weight, divided by
// the mean weight. For a single patch both means are pools over rows: a reduction sums in
// an order that depends on the memory layout, which is different in a batch.
func lowerWeightedMean(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	x, s := operandShape(n, 0), n.Shape()
	each := l.op("Mul", x, []value{l.op("Mul", x, []value{l.op("Sub", x, in[:2]), in[2]}), in[3]})
	if s[2] == 1 && s[3] == 1 {
		mean := func(v value, rows, m int) value {
			row := l.op("Reshape", []int{rows, 1, 1, m}, []value{v, l.ints(-1, 1, 1, m)})
			return l.op("GlobalAveragePool", []int{rows, 1, 1, 1}, []value{row})
		}
		return l.op("Div", s, []value{mean(each, s[0], x[1]), mean(in[3], 1, x[1])}), nil
	}
	sum := l.op("ReduceSum", s, []value{each, l.ints(1)}, intAttr("keepdims", 1))
	all := l.op("ReduceSum", []int{1, 1, 1}, []value{in[3], l.ints(0)}, intAttr("keepdims", 1))
	return l.op("Div", s, []value{sum, all}), nil
}

// whiten lowers the product of the whitening matrix (C×C×1×1) with features − mean to a 1×1
// convolution.
func (l *lowering) whiten(features, mean, whitening value, shape []int) value {
	return l.op("Conv", shape, []value{l.op("Sub", shape, []value{features, mean}), whitening}, intsAttr("kernel_shape", 1, 1))
}

// sumSquares lowers the sum of squares along an axis, which the result has with size 1.
func (l *lowering) sumSquares(v value, axis int) value {
	shape := append([]int(nil), v.shape...)
	shape[axis] = 1
	return l.op("ReduceSum", shape, []value{l.op("Mul", v.shape, []value{v, v}), l.ints(axis)}, intAttr("keepdims", 1))
}

// lowerPatchDistance lowers the squared distance of each patch from normal patches. The
// products of each patch's deviation with its principal directions are one batched matrix
// product.
func lowerPatchDistance(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	x, s, rank := operandShape(n, 0), n.Shape(), operandShape(n, 4)[1]
	images, c, h, w, area := x[0], x[1], x[2], x[3], x[2]*x[3]
	y := l.whiten(in[0], in[1], in[2], x)
	columns := l.op("Reshape", []int{images, c, area, 1}, []value{y, l.ints(0, c, area, 1)})
	patches := l.op("Transpose", []int{images, area, c, 1}, []value{columns}, intsAttr("perm", 0, 2, 1, 3))
	along := l.op("MatMul", []int{images, area, rank, 1}, []value{in[4], patches})
	// Both are sums of rows, whose order does not depend on the batch size.
	length := l.op("Mul", s, []value{l.op("Reshape", s, []value{l.sumSquares(patches, 2), l.ints(0, 1, h, w)}), in[3]})
	taken := l.op("Reshape", s, []value{l.sumSquares(along, 2), l.ints(0, 1, h, w)})
	return l.op("Relu", s, []value{l.op("Sub", s, []value{length, taken})}), nil
}

// lowerNearest lowers the squared distance to the nearest vector of the bank, as |y|² + |b|²
// − 2y·b. That form needs no tensor of images × bank × channels.
func lowerNearest(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	x, s := operandShape(n, 0), n.Shape()
	images, c, bank := x[0], x[1], operandShape(n, 3)[0]
	y := l.op("Reshape", []int{images, c}, []value{l.whiten(in[0], in[1], in[2], x), l.ints(0, c)})
	products := l.op("MatMul", []int{images, bank}, []value{y, l.op("Transpose", []int{c, bank}, []value{in[3]}, intsAttr("perm", 1, 0))})
	lengths := l.op("Reshape", []int{1, bank}, []value{l.sumSquares(in[3], 1), l.ints(1, bank)})
	// The maximum of 2y·b − |b|² is a global pool and not a reduction, whose form is not the
	// same in all versions of ONNX.
	near := l.op("Sub", products.shape, []value{l.op("Mul", products.shape, []value{products, l.floats(nil, 2)}), lengths})
	row := l.op("Reshape", []int{images, 1, 1, bank}, []value{near, l.ints(0, 1, 1, bank)})
	nearest := l.op("GlobalMaxPool", s, []value{row})
	length := l.op("Reshape", s, []value{l.sumSquares(y, 1), l.ints(0, 1, 1, 1)})
	return l.op("Relu", s, []value{l.op("Sub", s, []value{length, nearest})}), nil
}
