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

// operators maps the ONNX operators of an inference model to the functions that read them.
var operators = map[string]func(*value, onnx.Operation) error{
	"Conv":          plainConvolution,
	"ConvTranspose": convolution(network.ConvolveTransposed, true, network.Half()),
	"Relu":          elementwise(1, func(x []*gorgonia.Node) (*gorgonia.Node, error) { return network.Rectify(x[0]) }),
	"Sigmoid":       elementwise(1, func(x []*gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.Sigmoid(x[0]) }),
	"Clip":          clip,
	"HardSigmoid":   inside,
	"Add":           elementwise(2, func(x []*gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.Add(x[0], x[1]) }),
	"Sub":           subtraction,
	"Mul":           multiplication,
	"ReduceSum":     reduction,
	"Div":           division,
}

// attributes returns ErrUnsupported unless an operator has exactly these attributes.
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

// inputs returns the operands as nodes. It returns ErrFormat unless there are n.
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

// operandsDefined returns ErrFormat if an operand is not defined yet.
func (v *value) operandsDefined() error {
	for _, o := range v.operands {
		if !o.defined() {
			_, err := o.expression()
			return err
		}
	}
	return nil
}

// compute sets the value to the result of apply for its n operands. It returns ErrFormat for
// an error of Gorgonia, such as shapes that do not fit.
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

// elementwise returns a function that reads an operator without attributes, whose n operands
// have the same shape.
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

// isInside reports whether the value is the result of inside.
func (v *value) isInside() bool {
	if v.node == nil {
		return false
	}
	op, ok := v.node.Op().(network.ScoringOp)
	return ok && op.Kind == network.Inside
}

// multiplication reads the square of a value, its product with the pixels inside, or a product
// of sizes.
func multiplication(v *value, op onnx.Operation) error {
	if err := attributes(op, nil); err != nil {
		return err
	}
	if err := v.operandsDefined(); err != nil {
		return err
	}
	if len(v.operands) == 2 {
		a, b := v.operands[0], v.operands[1]
		switch {
		case a == b && a.node != nil:
			return v.compute(2, func(in []*gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.Square(in[0]) })
		case a.node != nil && b.isInside(): // a difference and the pixels inside
			return v.compute(2, func(in []*gorgonia.Node) (*gorgonia.Node, error) {
				if !in[0].Shape().Eq(in[1].Shape()) {
					return nil, fmt.Errorf("shapes %v and %v", in[0].Shape(), in[1].Shape())
				}
				return gorgonia.HadamardProd(in[0], in[1])
			})
		case a.factors != nil && len(b.factors) == 1:
			v.factors = slices.Concat(a.factors, b.factors)
			return nil
		}
	}
	return fmt.Errorf("%w: the product is neither a square nor a product of sizes", ErrUnsupported)
}

// inside reads network.Inside of all channels: a HardSigmoid with a steep slope.
func inside(v *value, op onnx.Operation) error {
	want := map[string]any{"alpha": float32(network.InsideSlope), "beta": float32(1)}
	if err := attributes(op, want); err != nil {
		return err
	}
	return v.compute(1, func(in []*gorgonia.Node) (*gorgonia.Node, error) {
		if in[0].Dims() != 4 {
			return nil, fmt.Errorf("the shape %v", in[0].Shape())
		}
		v.backend.masked = true
		return gorgonia.ApplyOp(network.ScoringOp{Kind: network.Inside, Size: in[0].Shape()[1]}, in[0])
	})
}

// reduction reads a sum along constant axes, the first operator of a mean.
func reduction(v *value, op onnx.Operation) error {
	if err := attributes(op, map[string]any{"keepdims": int64(0)}); err != nil {
		return err
	}
	if err := v.operandsDefined(); err != nil {
		return err
	}
	if len(v.operands) != 2 || v.operands[1].axes == nil {
		return fmt.Errorf("%w: expected a tensor and constant axes", ErrUnsupported)
	}
	x, err := v.operands[0].expression()
	if err != nil {
		return err
	}
	along := v.operands[1].axes
	for i, a := range along {
		if a < 0 || a >= x.Dims() || i > 0 && a <= along[i-1] {
			return fmt.Errorf("%w: axes %v for the shape %v", ErrUnsupported, along, x.Shape())
		}
	}
	v.sum = &sum{x, along}
	return nil
}

// division reads the second operator of a mean, the sum divided by the sizes of its axes, or a
// division by backbone.Deviation, or of the error of images by their share inside. A mean along
// the batch axis is not supported, because the file has no batch size.
func division(v *value, op onnx.Operation) error {
	if err := attributes(op, nil); err != nil {
		return err
	}
	if err := v.operandsDefined(); err != nil {
		return err
	}
	if v.byNumber(backbone.Deviation) {
		return v.withNumber(backbone.Deviation, gorgonia.Div)
	}
	if v.backend.masked && len(v.operands) == 2 && v.operands[0].node != nil && v.operands[1].node != nil {
		return v.compute(2, func(in []*gorgonia.Node) (*gorgonia.Node, error) {
			if !in[0].Shape().Eq(in[1].Shape()) {
				return nil, fmt.Errorf("shapes %v and %v", in[0].Shape(), in[1].Shape())
			}
			return gorgonia.HadamardDiv(in[0], in[1])
		})
	}
	if len(v.operands) != 2 || v.operands[0].sum == nil || v.operands[1].factors == nil {
		return fmt.Errorf("%w: expected a mean, a sum divided by the sizes of its axes", ErrUnsupported)
	}
	s := v.operands[0].sum
	sizes := make([]float32, len(s.along))
	for i, a := range s.along {
		sizes[i] = float32(s.of.Shape()[a])
	}
	if got := v.operands[1].factors; !slices.Equal(got, sizes) || s.along[0] == 0 {
		return fmt.Errorf("%w: a sum along axes %v of sizes %v divided by %v, expected the mean of each image, divided by these sizes", ErrUnsupported, s.along, sizes, got)
	}
	var err error
	if v.node, err = gorgonia.Mean(s.of, s.along...); err != nil {
		v.node = nil
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}
