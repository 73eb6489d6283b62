package exporter

import (
	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// maskRules are the rules for the kinds of network.ScoringOp for images with pixels outside.
// No rule fixes the number of images.
var maskRules = map[network.Kind]rule{
	// One operator, so that package importer can read it. Programs of before version 2 of the
	// metadata format refuse a graph with it.
	network.Inside: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		x, s := in[0], n.Shape()
		inside := l.op("HardSigmoid", x.shape, []value{x}, floatAttr("alpha", network.InsideSlope), floatAttr("beta", 1)).stored(x.nhwc)
		if s[1] == x.shape[1] {
			return inside, nil
		}
		return l.op("Slice", s, []value{inside, l.ints(0), l.ints(s[1]), l.ints(1)}), nil
	},
	network.Repeat: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		times := float32(sizeOf(n))
		return l.op("Resize", n.Shape(), []value{in[0], {}, l.floats([]int{4}, 1, 1, times, times)},
			textAttr("mode", "nearest"), textAttr("coordinate_transformation_mode", "asymmetric"), textAttr("nearest_mode", "floor")), nil
	},
	network.Within: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		s := n.Shape()
		kept := l.op("Mul", s, in)
		if sizeOf(n) == 0 {
			return kept, nil
		}
		mask := operandShape(n, 1)
		outside := l.op("Mul", mask, []value{l.op("Sub", mask, []value{in[1], l.floats(nil, 1)}), l.floats(nil, float32(sizeOf(n)))})
		return l.op("Add", s, []value{kept, outside}), nil
	},
	network.AverageWithin: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		x, s := operandShape(n, 0), n.Shape()
		sum := l.op("GlobalAveragePool", s, []value{l.op("Mul", x, in)})
		one := []int{x[0], 1, 1, 1}
		share := l.op("Add", one, []value{l.op("GlobalAveragePool", one, in[1:]), l.floats(nil, network.SmallestShare)})
		return l.op("Div", s, []value{sum, share}), nil
	},
}
