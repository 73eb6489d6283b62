package importer

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/owulveryck/onnx-go"
	"gorgonia.org/gorgonia"
)

// operators are the ONNX operators of an inference model, and how each is read.
var operators = map[string]func(*value, onnx.Operation) error{
	"Conv":          plainConvolution,
	"ConvTranspose": convolution(network.ConvolveTransposed, true, network.Half()),
	"Relu":          elementwise(1, func(x []*gorgonia.Node) (*gorgonia.Node, error) { return network.Rectify(x[0]) }),
	"Sigmoid":       elementwise(1, func(x []*gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.Sigmoid(x[0]) }),
	"Clip":          clip,
	"Add":           elementwise(2, func(x []*gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.Add(x[0], x[1]) }),
	"Sub":           subtraction,
	"Mul":           multiplication,
	"ReduceSum":     reduction,
	"Div":           division,
}

// attributes returns ErrUnsupported when an operator has not exactly these.
func attributes(op onnx.Operation, want map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got := op.Attributes[name]; !reflect.DeepEqual(got, want[name]) {
			return fmt.Errorf("%w: %s is %v, expected %v", ErrUnsupported, name, got, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(op.Attributes)) {
		if _, ok := want[name]; !ok {
			return fmt.Errorf("%w: the attribute %.60q", ErrUnsupported, name)
		}
	}
	return nil
}

// inputs gives the operands, as many as must be, as nodes.
func (v *value) inputs(n int) ([]*gorgonia.Node, error) {
	if len(v.operands) != n {
		return nil, fmt.Errorf("%w: %d operands, expected %d", ErrFormat, len(v.operands), n)
	}
	nodes := make([]*gorgonia.Node, n)
	for i, o := range v.operands {
		var err error
		if nodes[i], err = o.expression(); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// known returns ErrFormat when an operand was not given by what comes before.
func (v *value) known() error {
	for _, o := range v.operands {
		if !o.given() {
			_, err := o.expression()
			return err
		}
	}
	return nil
}

// compute sets the value to the node made of its operands. What Gorgonia
// refuses to make is a graph whose parts do not fit.
func (v *value) compute(n int, apply func([]*gorgonia.Node) (*gorgonia.Node, error)) error {
	in, err := v.inputs(n)
	if err != nil {
		return err
	}
	if v.node, err = apply(in); err != nil {
		v.node = nil
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// elementwise reads an operator without attributes, on operands of one shape.
func elementwise(n int, apply func([]*gorgonia.Node) (*gorgonia.Node, error)) func(*value, onnx.Operation) error {
	return func(v *value, op onnx.Operation) error {
		if err := attributes(op, nil); err != nil {
			return err
		}
		return v.compute(n, func(in []*gorgonia.Node) (*gorgonia.Node, error) {
			for _, x := range in[1:] {
				if !x.Shape().Eq(in[0].Shape()) {
					return nil, fmt.Errorf("shapes %v and %v", in[0].Shape(), x.Shape())
				}
			}
			return apply(in)
		})
	}
}

// multiplication reads the square of a value, or multiplies sizes.
func multiplication(v *value, op onnx.Operation) error {
	if err := attributes(op, nil); err != nil {
		return err
	}
	if err := v.known(); err != nil {
		return err
	}
	if len(v.operands) == 2 {
		a, b := v.operands[0], v.operands[1]
		switch {
		case a == b && a.node != nil:
			return v.compute(2, func(in []*gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.Square(in[0]) })
		case a.factors != nil && len(b.factors) == 1:
			v.factors = slices.Concat(a.factors, b.factors)
			return nil
		}
	}
	return fmt.Errorf("%w: a product that is neither a square nor one of sizes", ErrUnsupported)
}

// reduction reads the first half of a mean.
func reduction(v *value, op onnx.Operation) error {
	if err := attributes(op, map[string]any{"keepdims": int64(0)}); err != nil {
		return err
	}
	if err := v.known(); err != nil {
		return err
	}
	if len(v.operands) != 2 || v.operands[1].axes == nil {
		return fmt.Errorf("%w: expected a tensor and its axes as a constant", ErrUnsupported)
	}
	x, err := v.operands[0].expression()
	if err != nil {
		return err
	}
	along := v.operands[1].axes
	for i, a := range along {
		if a < 0 || a >= x.Dims() || i > 0 && a <= along[i-1] {
			return fmt.Errorf("%w: axes %v of shape %v", ErrUnsupported, along, x.Shape())
		}
	}
	v.sum = &sum{x, along}
	return nil
}

// division reads the second half of a mean: the sum by the sizes of its axes. Or
// it divides by the deviation that a backbone's images are normalized with. The size of the batch is not in the file, which is for any number of images.
func division(v *value, op onnx.Operation) error {
	if err := attributes(op, nil); err != nil {
		return err
	}
	if err := v.known(); err != nil {
		return err
	}
	if v.byNumber(backbone.Deviation) {
		return v.withNumber(backbone.Deviation, gorgonia.Div)
	}
	if len(v.operands) != 2 || v.operands[0].sum == nil || v.operands[1].factors == nil {
		return fmt.Errorf("%w: expected a sum by the sizes of its axes, for a mean", ErrUnsupported)
	}
	s := v.operands[0].sum
	sizes := make([]float32, len(s.along))
	for i, a := range s.along {
		sizes[i] = float32(s.of.Shape()[a])
	}
	if got := v.operands[1].factors; !slices.Equal(got, sizes) || s.along[0] == 0 {
		return fmt.Errorf("%w: a sum along axes %v of sizes %v by %v, expected by these sizes, for the mean of each image", ErrUnsupported, s.along, sizes, got)
	}
	var err error
	if v.node, err = gorgonia.Mean(s.of, s.along...); err != nil {
		v.node = nil
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}
