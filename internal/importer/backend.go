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

// backend is the graph that onnx-go's decoder fills. Its nodes are the file's values, its
// edges lead from each value to its operands. The decoder adds all inputs, outputs and
// initializers before the first operator, and operators in the file's order, which ONNX
// requires to be topological. So each operator can become a Gorgonia node when it is added.
type backend struct {
	// The edges of this graph record which values are used. It has at most one edge
	// between two values, so value.operands has the operands: x·x has two.
	*simple.WeightedDirectedGraph
	graph      *gorgonia.ExprGraph
	batch      int
	weights    models.StateDict
	parameters map[string]*gorgonia.Node
	// masked reports whether the file has pixels outside; see network.Forward.Masked.
	masked bool
	// err is an error of SetWeightedEdge, which cannot return it.
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

// value is a value of the file. One of node, factors, axes and sum is set once the value is
// defined.
type value struct {
	backend  *backend
	id       int64
	name     string
	data     tensor.Tensor
	operands []*value

	// node is an input, or the result of an operator that has a Gorgonia counterpart.
	node *gorgonia.Node
	// factors are the factors of a scalar. The exporter writes the sizes of the axes of a
	// mean as constants; Gorgonia's mean computes them from its operand.
	factors []float32
	// axes are the axes of a sum.
	axes []int
	// sum is the sum of a mean that is not divided yet.
	sum *sum
}

// sum is a sum of a node along axes.
type sum struct {
	of    *gorgonia.Node
	along []int
}

var (
	_ onnx.Namer       = (*value)(nil)
	_ onnx.DataCarrier = (*value)(nil)
)

// isDeclared reports whether a value of that name is an input or output of the graph. For
// these the decoder sets a tensor of zeros with the declared shape.
func isDeclared(name string) bool {
	return name == network.ImageName || name == network.ReconstructionName || name == network.ErrorName
}

// ID returns the identifier of the value in the backend.
func (v *value) ID() int64 { return v.id }

// SetName sets the value's name in the file.
func (v *value) SetName(name string) { v.name = name }

// GetName returns the value's name in the file.
func (v *value) GetName() string { return v.name }

// GetTensor returns the tensor of SetTensor.
func (v *value) GetTensor() tensor.Tensor { return v.data }

// SetTensor sets the data of an initializer, or the shape of an input or output. That shape
// lacks the batch axis, which onnx-go drops because it has no size.
func (v *value) SetTensor(t tensor.Tensor) error {
	if v.data != nil {
		return fmt.Errorf("%w: %s is defined twice", ErrFormat, v.name)
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
		return fmt.Errorf("%w: %s has elements of type %v", ErrUnsupported, v.name, t.Dtype())
	}
	return nil
}

// elements returns a tensor's data as a slice. For a scalar, package tensor returns the
// element itself.
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

// input adds an input to the Gorgonia graph.
func (b *backend) input(name string, shape []int) *gorgonia.Node {
	return gorgonia.NewTensor(b.graph, tensor.Float32, len(shape), gorgonia.WithShape(shape...), gorgonia.WithName(name))
}

// expression returns the value as a Gorgonia node. It returns ErrUnsupported for a constant or
// a sum, and ErrFormat for a value that is not defined yet.
func (v *value) expression() (*gorgonia.Node, error) {
	switch {
	case v.node != nil:
		return v.node, nil
	case v.defined():
		return nil, fmt.Errorf("%w: %s is a constant or a sum, which are only supported in a mean", ErrUnsupported, v.name)
	}
	return nil, fmt.Errorf("%w: %s is used before it is defined", ErrFormat, v.name)
}

// defined reports whether the value is an initializer, an input, or the result of an operator
// read so far.
func (v *value) defined() bool {
	return v.node != nil || v.factors != nil || v.axes != nil || v.sum != nil
}

// NewNode returns a value that is not in the graph yet.
func (b *backend) NewNode() graph.Node {
	return &value{backend: b, id: b.WeightedDirectedGraph.NewNode().ID()}
}

// SetWeightedEdge makes a value an operand of another. The decoder adds operands in order.
func (b *backend) SetWeightedEdge(e graph.WeightedEdge) {
	of, operand := e.From().(*value), e.To().(*value)
	if of == operand {
		b.err = fmt.Errorf("%w: %s is its own operand", ErrFormat, of.name)
		return
	}
	of.operands = append(of.operands, operand)
	b.WeightedDirectedGraph.SetWeightedEdge(e)
}

// ApplyOperation converts an ONNX operator, whose operands are all added, to the Gorgonia
// node that the exporter lowered to it.
func (b *backend) ApplyOperation(op onnx.Operation, results ...graph.Node) error {
	if b.err != nil {
		return b.err
	}
	read, ok := operators[op.Name]
	if !ok {
		return fmt.Errorf("%w: the operator %.60q", ErrUnsupported, op.Name)
	}
	if len(results) != 1 {
		return fmt.Errorf("%w: %s has %d results, expected 1", ErrUnsupported, op.Name, len(results))
	}
	v := results[0].(*value)
	if v.defined() {
		return fmt.Errorf("%w: %s is defined twice", ErrFormat, v.name)
	}
	if err := read(v, op); err != nil {
		return fmt.Errorf("%s with the result %s: %w", op.Name, v.name, err)
	}
	return nil
}
