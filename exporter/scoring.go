package exporter

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// scoringRules are the rules for network.ScoringOp, the operators that compute an anomaly score
// from features, by kind. patchRules has the rules for patch features.
var scoringRules = map[network.Kind]rule{
	network.PadEdge: lowerPad, network.PadWidth: lowerPad, network.PadHeight: lowerPad,
	network.AveragePool: pool("AveragePool"),
	network.MaxPool:     pool("MaxPool"),
	network.Join:        concatChannels,
	network.Stack:       concatChannels,
	network.Centre: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		s := n.Shape()
		mean := l.op("GlobalAveragePool", []int{s[0], s[1], 1, 1}, in)
		return l.op("Sub", s, []value{in[0], mean}), nil
	},
	network.Logarithm: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		return l.op("Log", n.Shape(), []value{l.op("Add", n.Shape(), []value{in[0], l.floats(nil, network.LogarithmOffset)})}), nil
	},
	network.Lightness: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		s := n.Shape()
		scaled := l.op("Mul", s, []value{in[0], l.floats(nil, 1/network.LightnessOffset)})
		log := l.op("Log", s, []value{l.op("Add", s, []value{scaled, l.floats(nil, 1)})})
		return l.op("Mul", s, []value{log, l.floats(nil, network.LightnessScale())}), nil
	},
	network.Mahalanobis: lowerMahalanobis,
	network.Deviation: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		s := n.Shape()
		deviation := l.op("Mul", s, []value{l.op("Sub", s, in[:2]), in[2]})
		limited := l.op("Clip", s, []value{deviation, l.floats(nil, -network.DeviationLimit), l.floats(nil, network.DeviationLimit)})
		return l.op("Mul", s, []value{limited, l.floats(nil, 0.5)}), nil
	},
	network.Standardize: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		return l.op("Mul", n.Shape(), []value{l.op("Sub", n.Shape(), in[:2]), in[2]}), nil
	},
	network.Larger: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		s := n.Shape()
		distance := l.op("Abs", s, []value{l.op("Sub", s, in)})
		surplus := l.op("Softplus", s, []value{l.op("Mul", s, []value{distance, l.floats(nil, -2)})})
		return l.op("Add", s, []value{l.op("Max", s, in), l.op("Mul", s, []value{surplus, l.floats(nil, 0.5)})}), nil
	},
	network.Peak: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		return l.op("GlobalMaxPool", n.Shape(), in), nil
	},
	network.Enlarge: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		times := float32(sizeOf(n))
		return l.op("Resize", n.Shape(), []value{in[0], {}, l.floats([]int{4}, 1, 1, times, times)},
			textAttr("mode", "linear"), textAttr("coordinate_transformation_mode", "half_pixel")), nil
	},
	network.Plane:    func(l *lowering, n *gorgonia.Node, in []value) (value, error) { return l.drop(n, in[0], 1), nil },
	network.Single:   func(l *lowering, n *gorgonia.Node, in []value) (value, error) { return l.drop(n, in[0], 1, 2, 3), nil },
	network.Softplus: elementwise("Softplus"),
}

// lowerScoring lowers an operator by the rule for its kind. No rule fixes the number of
// images.
func lowerScoring(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	op := n.Op().(network.ScoringOp)
	r, ok := scoringRules[op.Kind]
	if !ok {
		r, ok = patchRules[op.Kind]
	}
	if !ok {
		r, ok = maskRules[op.Kind]
	}
	if !ok {
		return value{}, fmt.Errorf("%w: %v", ErrNoLowering, op)
	}
	for i := range in {
		in[i] = l.expand(in[i], operandShape(n, i))
	}
	return r(l, n, in)
}

// sizeOf returns the Size of a network.ScoringOp.
func sizeOf(n *gorgonia.Node) int { return n.Op().(network.ScoringOp).Size }

// lowerPad lowers a padding by the edge.
func lowerPad(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, h := n.Op().(network.ScoringOp).Borders()
	return l.op("Pad", n.Shape(), []value{in[0], l.ints(0, 0, h, w, 0, 0, h, w)}, textAttr("mode", "edge")), nil
}

// pool returns a rule that lowers a pool over squares that do not overlap.
func pool(op string) rule {
	return func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		size := sizeOf(n)
		return l.op(op, n.Shape(), in, intsAttr("kernel_shape", size, size), intsAttr("strides", size, size)), nil
	}
}

// concatChannels lowers a concatenation along the channels.
func concatChannels(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	return l.op("Concat", n.Shape(), in, intAttr("axis", 1)), nil
}

// drop removes axes of size 1.
func (l *lowering) drop(n *gorgonia.Node, x value, axes ...int) value {
	return l.op("Squeeze", n.Shape(), []value{x, l.ints(axes...)})
}

// lowerMahalanobis groups the patches by block, so that one matrix product per block whitens
// all its patches. A size of 0 in a Reshape keeps that axis, the number of images.
func lowerMahalanobis(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	x, blocks := operandShape(n, 0), sizeOf(n)
	images, d, p := x[0], x[1], x[2]
	side := p / blocks
	reshape := func(v value, shape ...int) value {
		full := append([]int{images}, shape...)
		return l.op("Reshape", full, []value{v, l.ints(append([]int{0}, shape...)...)})
	}
	transpose := func(v value, perm ...int) value {
		shape := make([]int, len(perm))
		for i, a := range perm {
			shape[i] = v.shape[a]
		}
		return l.op("Transpose", shape, []value{v}, intsAttr("perm", perm...))
	}
	deviation := l.op("Mul", x, []value{l.op("Sub", x, in[:2]), in[2]})
	split := reshape(deviation, d, blocks, side, blocks, side)
	grouped := reshape(transpose(split, 0, 2, 4, 1, 3, 5), blocks*blocks, d, side*side)
	white := l.op("MatMul", grouped.shape, []value{in[3], grouped})
	if p == 1 {
		// Reduce rows of D elements: a reduction of N×D×1×1 sums in an order that depends
		// on N.
		return l.op("Reshape", []int{images, 1, 1, 1}, []value{l.sumSquares(reshape(white, d), 1), l.ints(0, 1, 1, 1)}), nil
	}
	squares := l.op("Mul", white.shape, []value{white, white})
	sums := l.op("ReduceSum", []int{images, blocks * blocks, side * side}, []value{squares, l.ints(2)}, intAttr("keepdims", 0))
	patches := reshape(sums, blocks, blocks, side, side)
	return reshape(transpose(patches, 0, 1, 3, 2, 4), 1, p, p), nil
}
