package exporter

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// ErrNoLowering is returned, wrapped with the operator's name, for a graph with an operator
// that cannot be lowered.
var ErrNoLowering = errors.New("exporter: no ONNX lowering for this operator")

// rule lowers one node whose operands are lowered already.
type rule func(l *lowering, n *gorgonia.Node, in []value) (value, error)

// ownRules are the rules for the operators of package network, by type.
var ownRules = map[reflect.Type]rule{
	reflect.TypeFor[network.Conv2D]():                 lowerConv,
	reflect.TypeFor[network.ConvTranspose2D]():        lowerConvTranspose,
	reflect.TypeFor[network.ConvInputGrad]():          lowerConvInputGrad,
	reflect.TypeFor[network.ConvTransposeInputGrad](): lowerConv,
	reflect.TypeFor[network.ConvWeightGrad]():         lowerConvWeightGrad,
	reflect.TypeFor[network.ChannelSum]():             lowerChannelSum,
	reflect.TypeFor[network.DepthwiseConv2D]():        lowerDepthwise,
	reflect.TypeFor[network.ReLU]():                   elementwise("Relu"),
	reflect.TypeFor[network.ReLU6]():                  lowerReLU6,
	reflect.TypeFor[network.ReLUGrad]():               lowerReLUGrad,
	reflect.TypeFor[network.ScoringOp]():              lowerScoring,
	reflect.TypeFor[network.LogisticLoss]():           lowerLogisticLoss,
}

// gorgoniaRules are the rules for Gorgonia's operators. Their types are not exported, so the
// key is the beginning of the operator's String, without arguments: "Σ[1 2 3]", "SizeOf=3"
// and "- false" have the keys "Σ", "SizeOf" and "-".
var gorgoniaRules = map[string]rule{
	"sigmoid": elementwise("Sigmoid"),
	"neg":     elementwise("Neg"),
	"sqrt":    elementwise("Sqrt"),
	"square":  lowerSquare,
	"+":       elementwise("Add"),
	"-":       elementwise("Sub"),
	"⊙":       elementwise("Mul"),
	"÷":       elementwise("Div"),
	"Σ":       lowerSum,
	"SizeOf":  lowerSize,
	"const":   lowerConstant,
	"Reshape": lowerReshape,
	"Repeat":  lowerRepeat,
}

// ruleOf returns the rule for an operator.
func ruleOf(op gorgonia.Op) (rule, bool) {
	if r, ok := ownRules[reflect.TypeOf(op)]; ok {
		return r, true
	}
	name := fmt.Sprint(op)
	if i := strings.IndexAny(name, " =[(0123456789"); i > 0 {
		name = name[:i]
	}
	r, ok := gorgoniaRules[name]
	return r, ok
}

// lowering walks a Gorgonia graph from its outputs to its inputs and emits each node once,
// operands first. Nodes that no output depends on, such as the gradient of the image, are
// not emitted.
type lowering struct {
	*graph
	done map[*gorgonia.Node]value
	// nhwcOf maps the name of a value stored N×C×H×W to its copy stored N×H×W×C.
	nhwcOf map[string]value
	// processor reports whether operators of package kernels may be used.
	processor bool
	// version is the input VersionName of a training step; its name is empty in other
	// graphs.
	version value
	// fixed reports whether parameters are initializers and not inputs.
	fixed bool
}

func newLowering(name string, extensions bool) *lowering {
	return &lowering{graph: newGraph(name, extensions), done: map[*gorgonia.Node]value{}, nhwcOf: map[string]value{}}
}

// source registers a node that is not computed: an input or a parameter.
func (l *lowering) source(n *gorgonia.Node, name string) value {
	v := value{name: name, shape: n.Shape()}
	l.done[n] = v
	return v
}

// lower emits the node and all nodes that it depends on. The value may have axes of size 1
// in place of repeated axes, and either layout.
func (l *lowering) lower(n *gorgonia.Node) (value, error) {
	if v, ok := l.done[n]; ok {
		return v, nil
	}
	if n.Op() == nil {
		return value{}, fmt.Errorf("exporter: the graph depends on the input %s, which was not declared", n.Name())
	}
	v, ok, err := l.fused(n)
	if err == nil && !ok {
		v, err = l.single(n)
	}
	if err != nil {
		return value{}, err
	}
	l.done[n] = v
	return v, nil
}

// single emits a node by the rule for its operator.
func (l *lowering) single(n *gorgonia.Node) (value, error) {
	in, err := l.operands(n)
	if err != nil {
		return value{}, err
	}
	if r, ok := processorRules[reflect.TypeOf(n.Op())]; ok && l.useKernel(n, in) {
		return r(l, n, in)
	}
	r, ok := ruleOf(n.Op())
	if !ok {
		return value{}, fmt.Errorf("%w: %v (%T)", ErrNoLowering, n.Op(), n.Op())
	}
	if slices.ContainsFunc(in, func(v value) bool { return v.nhwc }) && !acceptsNHWC(n.Op(), in) {
		for i := range in {
			in[i] = l.toNCHW(in[i])
		}
	}
	return r(l, n, in)
}

// operands emits the operands of a node.
func (l *lowering) operands(n *gorgonia.Node) ([]value, error) {
	if isSize(n) { // a constant: the operand need not be computed
		return nil, nil
	}
	var in []value
	for it := n.Graph().From(n.ID()); it.Next(); {
		v, err := l.lower(it.Node().(*gorgonia.Node))
		if err != nil {
			return nil, err
		}
		in = append(in, v)
	}
	return in, nil
}

// full emits the node in the shape of the Gorgonia node and in ONNX's layout, N×C×H×W.
func (l *lowering) full(n *gorgonia.Node) (value, error) {
	v, err := l.lower(n)
	if err != nil {
		return value{}, err
	}
	return l.expand(l.toNCHW(v), n.Shape()), nil
}

// expand repeats axes of size 1 to the given shape. If the shape is a scalar's, it returns
// the value unchanged: a tensor of one element broadcasts like a scalar.
func (l *lowering) expand(v value, shape []int) value {
	if slices.Equal(v.shape, shape) || len(shape) == 0 {
		return v
	}
	return l.op("Expand", shape, []value{v, l.ints(shape...)})
}

// result emits a node and declares it as an output with that name and documentation.
func (l *lowering) result(n *gorgonia.Node, name, doc string) error {
	v, err := l.full(n)
	if err != nil {
		return err
	}
	for _, in := range l.proto.Input {
		if in.GetName() == v.name {
			return fmt.Errorf("exporter: the output %s is the input %s", name, v.name)
		}
	}
	l.rename(v.name, name)
	v.name = name
	l.done[n] = v
	l.output(v, doc)
	return nil
}

// operandShape returns the shape of operand i of the Gorgonia node.
func operandShape(n *gorgonia.Node, i int) []int { return operandOf(n, i).Shape() }

// operandOf returns operand i of a node.
func operandOf(n *gorgonia.Node, i int) *gorgonia.Node {
	it := n.Graph().From(n.ID())
	for range i + 1 {
		it.Next()
	}
	return it.Node().(*gorgonia.Node)
}
