package exporter

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// elementwise lowers an operator that ONNX has under another name. ONNX
// broadcasts, so an operand whose repeated axes were left at size 1 is used as
// it is.
func elementwise(op string) rule {
	return func(l *lowering, _ *gorgonia.Node, in []value) (value, error) {
		shape, last := in[0].shape, in[0].last
		for _, v := range in[1:] {
			shape, last = broadcast(shape, v.shape), last || v.last
		}
		return l.op(op, shape, in).lying(last), nil
	}
}

// lowerSquare multiplies by itself: Pow takes several times as long.
func lowerSquare(l *lowering, _ *gorgonia.Node, in []value) (value, error) {
	return l.op("Mul", in[0].shape, []value{in[0], in[0]}).lying(in[0].last), nil
}

// lowerReLU6 holds numbers within its limits, which ONNX has as operands.
func lowerReLU6(l *lowering, _ *gorgonia.Node, in []value) (value, error) {
	return l.op("Clip", in[0].shape, []value{in[0], l.floats(nil, 0), l.floats(nil, network.Six)}).lying(in[0].last), nil
}

// lowerReLUGrad is the gradient times (result > 0). The mask as a product
// costs a third of what Where costs on the CPU provider.
func lowerReLUGrad(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	shape := n.Shape()
	above := l.op("Greater", shape, []value{in[0], l.floats(nil, 0)})
	mask := l.op("Cast", shape, []value{above}, intAttr("to", floatType))
	return l.op("Mul", shape, []value{l.expand(in[1], shape), mask}).lying(in[0].last), nil
}

// floatType is TensorProto.FLOAT as an attribute's value.
const floatType = 1

// lowerSum adds up the axes that Gorgonia's reduction names, and drops them.
func lowerSum(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	along := reflect.ValueOf(n.Op()).FieldByName("along")
	if !along.IsValid() || along.Kind() != reflect.Slice {
		return value{}, fmt.Errorf("%w: %v does not tell its axes", ErrNoLowering, n.Op())
	}
	axes := make([]int, along.Len())
	for i := range axes {
		axes[i] = int(along.Index(i).Int())
	}
	x := l.expand(in[0], operandShape(n, 0))
	if len(axes) == len(x.shape) && len(axes) > 1 {
		// Of everything, whatever its order. Rows first: a single sum over all of
		// a large image would leave few digits in float32.
		rows := l.op("ReduceSum", nil, []value{x, l.ints(-1)}, intAttr("keepdims", 0))
		return l.op("ReduceSum", n.Shape(), []value{rows}, intAttr("keepdims", 0)), nil
	}
	return l.op("ReduceSum", n.Shape(), []value{x, l.ints(axes...)}, intAttr("keepdims", 0)), nil
}

func isSize(n *gorgonia.Node) bool { return strings.HasPrefix(fmt.Sprint(n.Op()), "SizeOf") }

// lowerSize writes the size of an axis as a constant. That of the batch axis is
// none where the graph takes any number of images.
func lowerSize(l *lowering, n *gorgonia.Node, _ []value) (value, error) {
	axis := reflect.Indirect(reflect.ValueOf(n.Op())).FieldByName("axis")
	if !axis.IsValid() || !axis.CanInt() {
		return value{}, fmt.Errorf("%w: %v does not tell its axis", ErrNoLowering, n.Op())
	}
	if l.batch != "" && axis.Int() == 0 {
		return value{}, fmt.Errorf("%w: the size of the batch is not fixed in %s", ErrNoLowering, l.proto.GetName())
	}
	return l.floats(nil, float32(operandShape(n, 0)[axis.Int()])), nil
}

func lowerConstant(l *lowering, n *gorgonia.Node, _ []value) (value, error) {
	switch v := n.Value().(type) {
	case *gorgonia.F32:
		return l.floats(nil, float32(*v)), nil
	case *tensor.Dense:
		if data, ok := v.Data().([]float32); ok {
			return l.floats(slices.Clone(v.Shape()), data...), nil
		}
	}
	return value{}, fmt.Errorf("%w: a constant of type %T", ErrNoLowering, n.Value())
}

func lowerReshape(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	if l.batch != "" {
		return value{}, fmt.Errorf("%w: %v fixes the size of the batch in %s", ErrNoLowering, n.Op(), l.proto.GetName())
	}
	x := l.expand(in[0], operandShape(n, 0))
	return l.op("Reshape", n.Shape(), []value{x, l.ints(n.Shape()...)}), nil
}

// lowerRepeat leaves an axis of size 1 as it is: the elementwise operators that
// follow broadcast it, and no tensor of copies is ever made. Whoever needs the
// copies asks for them with expand.
func lowerRepeat(_ *lowering, n *gorgonia.Node, in []value) (value, error) {
	x, shape := in[0].shape, n.Shape()
	fits := len(x) == len(shape)
	for i := 0; fits && i < len(x); i++ {
		fits = x[i] == shape[i] || x[i] == 1
	}
	if !fits {
		return value{}, fmt.Errorf("%w: %v of shape %v to %v", ErrNoLowering, n.Op(), x, shape)
	}
	return in[0], nil
}
