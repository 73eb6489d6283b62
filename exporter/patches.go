package exporter

import (
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// patchRules are the rules of the steps that judge patch features. None of them
// fixes the number of images.
var patchRules = map[network.Kind]rule{
	network.PatchDistance: lowerPatchDistance,
	network.Nearest:       lowerNearest,
	network.WeightedMean:  lowerWeightedMean,
	network.First: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		return l.op("Slice", n.Shape(), []value{in[0], l.ints(0), l.ints(sizeOf(n)), l.ints(0)}), nil
	},
	network.Crop: func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
		p, s := sizeOf(n), n.Shape()
		return l.op("Slice", s, []value{in[0], l.ints(p, p), l.ints(p+s[2], p+s[3]), l.ints(2, 3)}), nil
	},
}

// lowerWeightedMean takes the mean of one place as that of the products by that of the
// weights, each a pool over one row: a reduction adds the numbers of an image in another
// order when they lie elsewhere in memory, as they do in a batch.
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

// whiten lowers the whitening (C×C×1×1) of the deviation of features from their mean,
// which is a convolution.
func (l *lowering) whiten(features, mean, whitening value, shape []int) value {
	return l.op("Conv", shape, []value{l.op("Sub", shape, []value{features, mean}), whitening}, intsAttr("kernel_shape", 1, 1))
}

// squares lowers the sum of squares along an axis, which it keeps.
func (l *lowering) squares(v value, axis int) value {
	shape := append([]int(nil), v.shape...)
	shape[axis] = 1
	return l.op("ReduceSum", shape, []value{l.op("Mul", v.shape, []value{v, v}), l.ints(axis)}, intAttr("keepdims", 1))
}

// lowerPatchDistance multiplies the directions of each place with its deviation as
// one batch of products, one for each place.
func lowerPatchDistance(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	x, s, rank := operandShape(n, 0), n.Shape(), operandShape(n, 4)[1]
	images, c, p := x[0], x[1], x[2]
	y := l.whiten(in[0], in[1], in[2], x)
	columns := l.op("Reshape", []int{images, c, p * p, 1}, []value{y, l.ints(0, c, p*p, 1)})
	places := l.op("Transpose", []int{images, p * p, c, 1}, []value{columns}, intsAttr("perm", 0, 2, 1, 3))
	along := l.op("MatMul", []int{images, p * p, rank, 1}, []value{in[4], places})
	// Both are sums of rows, which are the same in a batch of any size.
	length := l.op("Mul", s, []value{l.op("Reshape", s, []value{l.squares(places, 2), l.ints(0, 1, p, p)}), in[3]})
	taken := l.op("Reshape", s, []value{l.squares(along, 2), l.ints(0, 1, p, p)})
	return l.op("Relu", s, []value{l.op("Sub", s, []value{length, taken})}), nil
}

// lowerNearest takes the squared distance as |y|² + |b|² − 2y·b: no tensor of images ×
// bank × channels is made.
func lowerNearest(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	x, s := operandShape(n, 0), n.Shape()
	images, c, bank := x[0], x[1], operandShape(n, 3)[0]
	y := l.op("Reshape", []int{images, c}, []value{l.whiten(in[0], in[1], in[2], x), l.ints(0, c)})
	products := l.op("MatMul", []int{images, bank}, []value{y, l.op("Transpose", []int{c, bank}, []value{in[3]}, intsAttr("perm", 1, 0))})
	lengths := l.op("Reshape", []int{1, bank}, []value{l.squares(in[3], 1), l.ints(1, bank)})
	// The largest of 2y·b − |b|²: a maximum over an image's places is written alike in
	// all versions of ONNX, a reduction is not.
	near := l.op("Sub", products.shape, []value{l.op("Mul", products.shape, []value{products, l.floats(nil, 2)}), lengths})
	row := l.op("Reshape", []int{images, 1, 1, bank}, []value{near, l.ints(0, 1, 1, bank)})
	nearest := l.op("GlobalMaxPool", s, []value{row})
	length := l.op("Reshape", s, []value{l.squares(y, 1), l.ints(0, 1, 1, 1)})
	return l.op("Relu", s, []value{l.op("Sub", s, []value{length, nearest})}), nil
}

// PatchFeaturesModel lowers the graph from images of a model (`image`, N×3×S×S in
// 0…1, any N) to their patch features, one output for each of models.HeadTaps.
func PatchFeaturesModel(side int, with Operators) (*StepModel, error) {
	image, p, err := network.PatchFeatures(1, side)
	if err != nil {
		return nil, err
	}
	l := newLowering("features", false)
	l.batch = "N"
	l.processor, l.fixed = with == Processor, true
	l.input(l.source(image, network.ImageName), "")
	l.fixedTensors(p.Backbone)
	var blocks []int
	for _, t := range models.HeadTaps() {
		blocks = append(blocks, t.Block)
	}
	return l.features(p.Features, blocks)
}

// HeadGradientModel lowers the training of head k on n images of that side. Inputs:
// `features.4` and so on by network.HeadGradient, `target` and `weight` (scalar), then
// the parameters. Outputs: `loss` (scalar), then the gradient of each parameter.
func HeadGradientModel(n, side, k int, with Operators) (*StepModel, error) {
	g, err := network.DifferentiateHead(n, side, k)
	if err != nil {
		return nil, err
	}
	l := newStep("head", with)
	l.headInputs(g)
	l.in(g.Target, network.TargetName)
	l.in(g.Weight, network.WeightName)
	l.derivatives(g.Parameters, g.Loss, g.Gradients)
	return l.finish("Forward and backward pass of what marks synthetic anomalies.")
}

// HeadModel lowers head k by itself, for one image: the features as
// network.HeadGradient has them, and the parameters, to `logits` (1×1×P×P).
func HeadModel(side, k int, with Operators) (*StepModel, error) {
	g, err := network.DifferentiateHead(1, side, k)
	if err != nil {
		return nil, err
	}
	l := newStep("heads", with)
	l.headInputs(g)
	for _, p := range g.Parameters {
		l.in(p, p.Name())
	}
	l.out(g.Logits, "logits")
	return l.finish("What marks synthetic anomalies.")
}

func (s *step) headInputs(g *network.HeadGradient) {
	for i, t := range models.HeadTaps() {
		s.in(g.Features[i], FeaturesName(t.Block))
	}
}
