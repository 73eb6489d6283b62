package importer

import (
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
	"github.com/owulveryck/onnx-go"
	"gonum.org/v1/gonum/graph"
	"gonum.org/v1/gonum/graph/simple"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// backend is what onnx-go's decoder fills: a graph whose nodes are the file's
// values and whose edges lead from each to its operands. The decoder brings all
// inputs, outputs and initializers before the first operator, and operators in
// the file's order, which ONNX wants to be the order of computing: so each
// becomes Gorgonia's as soon as it comes.
type backend struct {
	// The edges of this graph tell what is used. It holds one edge for two
	// values at most, so operands are kept in the values too: x·x has two.
	*simple.WeightedDirectedGraph
	graph      *gorgonia.ExprGraph
	batch      int
	weights    models.StateDict
	parameters map[string]*gorgonia.Node
	// err is what SetWeightedEdge ran into, which cannot return it.
	err error
}

var _ onnx.Backend = (*backend)(nil)

func newBackend(batch int) *backend {
	return &backend{
		WeightedDirectedGraph: simple.NewWeightedDirectedGraph(0, 0),
		graph:                 gorgonia.NewGraph(),
		batch:                 batch,
		parameters:            map[string]*gorgonia.Node{},
	}
}

// value is a value of the file. At most one of node, factors, axes and sum is
// set, and none as long as nothing has given the value.
type value struct {
	backend  *backend
	id       int64
	name     string
	data     tensor.Tensor
	operands []*value

	// node is an input or the result of an operator that stands for itself.
	node *gorgonia.Node
	// factors are the sizes that a scalar is the product of. Gorgonia's mean
	// reads them off its operand, the exporter writes them as constants.
	factors []float32
	// axes are what a sum goes along.
	axes []int
	// sum is the first half of a mean.
	sum *sum
}

// sum is a sum whose division is still to come.
type sum struct {
	of    *gorgonia.Node
	along []int
}

var (
	_ onnx.Namer       = (*value)(nil)
	_ onnx.DataCarrier = (*value)(nil)
)

// isDeclared reports whether a value of that name is an input or output of the
// graph, for which the decoder brings a tensor of zeros in the declared shape.
func isDeclared(name string) bool {
	return name == network.ImageName || name == network.ReconstructionName || name == network.ErrorName
}

// ID identifies the value in the backend.
func (v *value) ID() int64 { return v.id }

// SetName names the value as the file does.
func (v *value) SetName(name string) { v.name = name }

// GetName gives the value's name in the file.
func (v *value) GetName() string { return v.name }

// GetTensor gives what SetTensor got.
func (v *value) GetTensor() tensor.Tensor { return v.data }

// SetTensor gives an initializer its data, or an input or output its shape
// without the axis of the batch, which onnx-go drops because it has no size.
func (v *value) SetTensor(t tensor.Tensor) error {
	if v.data != nil {
		return fmt.Errorf("%w: %s is given twice", ErrFormat, v.name)
	}
	v.data = t
	b, shape := v.backend, slices.Clone(t.Shape())
	if isDeclared(v.name) {
		if v.name == network.ImageName {
			v.node = b.input(v.name, append([]int{b.batch}, shape...))
		}
		return nil
	}
	switch data := elements(t).(type) {
	case []int64:
		for _, a := range data {
			v.axes = append(v.axes, int(a))
		}
	case []float32:
		if len(shape) == 0 {
			v.factors = data
			return nil
		}
		v.node = b.input(v.name, shape)
		b.parameters[v.name] = v.node
		b.weights = append(b.weights, models.Tensor{Name: v.name, Shape: shape, Data: data})
	default:
		return fmt.Errorf("%w: %s holds %v", ErrUnsupported, v.name, t.Dtype())
	}
	return nil
}

// elements gives a tensor's data as a slice, of which package tensor gives the
// only element of a scalar bare.
func elements(t tensor.Tensor) any {
	switch data := t.Data().(type) {
	case float32:
		return []float32{data}
	case int64:
		return []int64{data}
	default:
		return data
	}
}

func (b *backend) input(name string, shape []int) *gorgonia.Node {
	return gorgonia.NewTensor(b.graph, tensor.Float32, len(shape), gorgonia.WithShape(shape...), gorgonia.WithName(name))
}

// expression is the value as a node of Gorgonia's graph.
func (v *value) expression() (*gorgonia.Node, error) {
	switch {
	case v.node != nil:
		return v.node, nil
	case v.given():
		return nil, fmt.Errorf("%w: %s is a constant or a sum, expected only as parts of a mean", ErrUnsupported, v.name)
	}
	return nil, fmt.Errorf("%w: %s is used, and nothing before has given it", ErrFormat, v.name)
}

func (v *value) given() bool {
	return v.node != nil || v.factors != nil || v.axes != nil || v.sum != nil
}

// NewNode gives a value that is not in the graph yet.
func (b *backend) NewNode() graph.Node {
	return &value{backend: b, id: b.WeightedDirectedGraph.NewNode().ID()}
}

// SetWeightedEdge makes a value an operand of another. The decoder brings
// operands in their order.
func (b *backend) SetWeightedEdge(e graph.WeightedEdge) {
	of, operand := e.From().(*value), e.To().(*value)
	if of == operand {
		b.err = fmt.Errorf("%w: %s is computed from itself", ErrFormat, of.name)
		return
	}
	of.operands = append(of.operands, operand)
	b.WeightedDirectedGraph.SetWeightedEdge(e)
}

// ApplyOperation makes of an ONNX operator, whose operands are all there, what
// the trainer has in its place.
func (b *backend) ApplyOperation(op onnx.Operation, results ...graph.Node) error {
	if b.err != nil {
		return b.err
	}
	read, ok := operators[op.Name]
	if !ok {
		return fmt.Errorf("%w: the operator %.60q", ErrUnsupported, op.Name)
	}
	if len(results) != 1 {
		return fmt.Errorf("%w: %s of %d results, expected 1", ErrUnsupported, op.Name, len(results))
	}
	v := results[0].(*value)
	if v.given() {
		return fmt.Errorf("%w: %s is given twice", ErrFormat, v.name)
	}
	if err := read(v, op); err != nil {
		return fmt.Errorf("%s that gives %s: %w", op.Name, v.name, err)
	}
	return nil
}
