package exporter

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// lowerSum lowers a sum along the axes of Gorgonia's reduction, which the result lacks. The
// axes are in an unexported field, read by reflection.
func lowerSum(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	along := reflect.ValueOf(n.Op()).FieldByName("along")
	if !along.IsValid() || along.Kind() != reflect.Slice {
		return value{}, fmt.Errorf("%w: %v has no readable axes", ErrNoLowering, n.Op())
	}
	axes := make([]int, along.Len())
	for i := range axes {
		axes[i] = int(along.Index(i).Int())
	}
	x := l.expand(in[0], operandShape(n, 0))
	if len(axes) == len(x.shape) && len(axes) > 1 {
		// A sum of all elements, in any layout. It sums rows first: one sum over a
		// large image would lose precision in float32.
		rows := l.op("ReduceSum", nil, []value{x, l.ints(-1)}, intAttr("keepdims", 0))
		return l.op("ReduceSum", n.Shape(), []value{rows}, intAttr("keepdims", 0)), nil
	}
	return l.op("ReduceSum", n.Shape(), []value{x, l.ints(axes...)}, intAttr("keepdims", 0)), nil
}

// isSize reports whether a node is the size of an axis.
func isSize(n *gorgonia.Node) bool { return strings.HasPrefix(fmt.Sprint(n.Op()), "SizeOf") }

// lowerSize lowers the size of an axis to a constant. It returns ErrNoLowering for the batch
// axis of a graph that accepts any number of images.
func lowerSize(l *lowering, n *gorgonia.Node, _ []value) (value, error) {
	axis := reflect.Indirect(reflect.ValueOf(n.Op())).FieldByName("axis")
	if !axis.IsValid() || !axis.CanInt() {
		return value{}, fmt.Errorf("%w: %v has no readable axis", ErrNoLowering, n.Op())
	}
	if l.batch != "" && axis.Int() == 0 {
		return value{}, fmt.Errorf("%w: the batch size is not fixed in %s", ErrNoLowering, l.proto.GetName())
	}
	return l.floats(nil, float32(operandShape(n, 0)[axis.Int()])), nil
}

// lowerConstant lowers a scalar or a tensor of float32.
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

// lowerReshape lowers Reshape. It returns ErrNoLowering in a graph that accepts any number of
// images, because Gorgonia's shape includes the batch size.
func lowerReshape(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	if l.batch != "" {
		return value{}, fmt.Errorf("%w: %v fixes the batch size in %s", ErrNoLowering, n.Op(), l.proto.GetName())
	}
	x := l.expand(in[0], operandShape(n, 0))
	return l.op("Reshape", n.Shape(), []value{x, l.ints(n.Shape()...)}), nil
}

// lowerRepeat returns its operand, with the repeated axes still of size 1: elementwise
// operators broadcast them, so no tensor of copies is allocated. Rules that need the full
// shape call expand.
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
