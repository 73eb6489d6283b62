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

// ErrNoLowering is returned, wrapped with the operator's name, when a graph
// holds an operator that the table has no entry for.
var ErrNoLowering = errors.New("exporter: no ONNX lowering for this operator")

// rule lowers one node, whose operands are lowered already.
type rule func(l *lowering, n *gorgonia.Node, in []value) (value, error)

// ownRules are the rules of the operators of package network, by type.
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
	reflect.TypeFor[network.ScoringOp]():              lowerStep,
	reflect.TypeFor[network.LogisticLoss]():           lowerLogisticLoss,
}

// gorgoniaRules are the rules of Gorgonia's own operators. Their types are not
// exported, so they are told by what they call themselves, up to the first
// character that belongs to an operand ("Σ[1 2 3]", "SizeOf=3", "- false").
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

// lowering walks a Gorgonia graph from its outputs back and emits each node it
// needs once, operands first. What no output depends on, such as the gradient
// to the image, is never emitted.
type lowering struct {
	*graph
	done map[*gorgonia.Node]value
	// lasts are values that were brought to package kernels' layout, by name.
	lasts map[string]value
	// processor says whether package kernels' operators may be used.
	processor bool
	// version is the input that tells one step's parameters from another's, if there
	// is one.
	version value
	// fixed says that parameters are part of the graph, not its inputs.
	fixed bool
}

func newLowering(name string, extensions bool) *lowering {
	return &lowering{graph: newGraph(name, extensions), done: map[*gorgonia.Node]value{}, lasts: map[string]value{}}
}

// source declares a node that is not computed: an input or a parameter.
func (l *lowering) source(n *gorgonia.Node, name string) value {
	v := value{name: name, shape: n.Shape()}
	l.done[n] = v
	return v
}

// lower emits the node, and all it depends on, in the shape it really has.
func (l *lowering) lower(n *gorgonia.Node) (value, error) {
	if v, ok := l.done[n]; ok {
		return v, nil
	}
	if n.Op() == nil {
		return value{}, fmt.Errorf("exporter: %s is an input of the graph that was not declared", n.Name())
	}
	v, ok, err := l.joined(n)
	if err == nil && !ok {
		v, err = l.alone(n)
	}
	if err != nil {
		return value{}, err
	}
	l.done[n] = v
	return v, nil
}

// alone emits a node by the rule of its operator.
func (l *lowering) alone(n *gorgonia.Node) (value, error) {
	in, err := l.operands(n)
	if err != nil {
		return value{}, err
	}
	if r, ok := processorRules[reflect.TypeOf(n.Op())]; ok && l.worthKernel(n, in) {
		return r(l, n, in)
	}
	r, ok := ruleOf(n.Op())
	if !ok {
		return value{}, fmt.Errorf("%w: %v (%T)", ErrNoLowering, n.Op(), n.Op())
	}
	if slices.ContainsFunc(in, func(v value) bool { return v.last }) && !worksOnChannelsLast(n.Op(), in) {
		for i := range in {
			in[i] = l.channelsFirst(in[i])
		}
	}
	return r(l, n, in)
}

// operands emits what a node is computed from.
func (l *lowering) operands(n *gorgonia.Node) ([]value, error) {
	if isSize(n) { // the size of an operand is known; the operand is not needed
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

// full emits the node in the shape that Gorgonia gives it, in ONNX's own layout.
func (l *lowering) full(n *gorgonia.Node) (value, error) {
	v, err := l.lower(n)
	if err != nil {
		return value{}, err
	}
	return l.expand(l.channelsFirst(v), n.Shape()), nil
}

// expand repeats the axes that stand for repeated ones. A single element serves
// as a scalar.
func (l *lowering) expand(v value, shape []int) value {
	if slices.Equal(v.shape, shape) || len(shape) == 0 {
		return v
	}
	return l.op("Expand", shape, []value{v, l.ints(shape...)})
}

// result emits a node as an output of the ONNX graph under a name of its own.
func (l *lowering) result(n *gorgonia.Node, name, doc string) error {
	v, err := l.full(n)
	if err != nil {
		return err
	}
	for _, in := range l.proto.Input {
		if in.GetName() == v.name {
			return fmt.Errorf("exporter: output %s is the input %s", name, v.name)
		}
	}
	l.rename(v.name, name)
	v.name = name
	l.done[n] = v
	l.output(v, doc)
	return nil
}

// operandShape is the shape Gorgonia gives operand i of the node.
func operandShape(n *gorgonia.Node, i int) []int { return operandOf(n, i).Shape() }

// operandOf is operand i of a node.
func operandOf(n *gorgonia.Node, i int) *gorgonia.Node {
	it := n.Graph().From(n.ID())
	for range i + 1 {
		it.Next()
	}
	return it.Node().(*gorgonia.Node)
}
