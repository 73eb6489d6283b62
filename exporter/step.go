package exporter

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// stepRules are the rules of network.ScoringOp, by kind.
var stepRules = map[network.Kind]rule{
	network.PadEdge: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		p := sizeOf(n)
		return l.op("Pad", n.Shape(), []value{in[0], l.ints(0, 0, p, p, 0, 0, p, p)}, textAttr("mode", "edge")), nil
	},
	network.AveragePool: pool("AveragePool"),
	network.MaxPool:     pool("MaxPool"),
	network.Join:        stack,
	network.Stack:       stack,
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
		apart := l.op("Abs", s, []value{l.op("Sub", s, in)})
		surplus := l.op("Softplus", s, []value{l.op("Mul", s, []value{apart, l.floats(nil, -2)})})
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

// lowerStep picks the rule of a step's kind. None of them fixes the number of
// images.
func lowerStep(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	op := n.Op().(network.ScoringOp)
	r, ok := stepRules[op.Kind]
	if !ok {
		r, ok = patchRules[op.Kind]
	}
	if !ok {
		return value{}, fmt.Errorf("%w: %v", ErrNoLowering, op)
	}
	for i := range in {
		in[i] = l.expand(in[i], operandShape(n, i))
	}
	return r(l, n, in)
}

func sizeOf(n *gorgonia.Node) int { return n.Op().(network.ScoringOp).Size }

func pool(op string) rule {
	return func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		size := sizeOf(n)
		return l.op(op, n.Shape(), in, intsAttr("kernel_shape", size, size), intsAttr("strides", size, size)), nil
	}
}

func stack(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	return l.op("Concat", n.Shape(), in, intAttr("axis", 1)), nil
}

// drop removes axes of size 1.
func (l *lowering) drop(n *gorgonia.Node, x value, axes ...int) value {
	return l.op("Squeeze", n.Shape(), []value{x, l.ints(axes...)})
}

// lowerMahalanobis sorts the places by the block they lie in, so that each
// block's whitening is one matrix product for all its places. A size of 0 in a
// Reshape keeps the axis, which is the number of images.
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
	sorted := reshape(transpose(split, 0, 2, 4, 1, 3, 5), blocks*blocks, d, side*side)
	white := l.op("MatMul", sorted.shape, []value{in[3], sorted})
	if p == 1 {
		// By rows: a reduction of N×D×1×1 adds up in another order for one image than
		// for several.
		return l.op("Reshape", []int{images, 1, 1, 1}, []value{l.squares(reshape(white, d), 1), l.ints(0, 1, 1, 1)}), nil
	}
	squares := l.op("Mul", white.shape, []value{white, white})
	sums := l.op("ReduceSum", []int{images, blocks * blocks, side * side}, []value{squares, l.ints(2)}, intAttr("keepdims", 0))
	places := reshape(sums, blocks, blocks, side, side)
	return reshape(transpose(places, 0, 1, 3, 2, 4), 1, p, p), nil
}
