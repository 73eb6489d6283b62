package exporter

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/deepmed/anomaly/internal/kernels"
	"github.com/deepmed/anomaly/internal/onnx"
	"google.golang.org/protobuf/proto"
)

// Opset is the ONNX operator set version of exported models. Version 17, of 2022, is
// supported by runtimes several years old and has all operators needed here.
const Opset = 17

// irVersion is the ONNX file format version that was released with Opset.
const irVersion = 8

// microsoft is the domain of ONNX Runtime's own operators. Only graphs that this program
// runs itself may use it.
const microsoft = "com.microsoft"

// value is a tensor in the ONNX graph under construction.
type value struct {
	name string
	// shape is the tensor's shape. It has size 1 where the Gorgonia node's shape has a
	// repeated axis; see lowerRepeat.
	shape []int
	// nhwc reports whether the tensor is stored with channels last, N×H×W×C; see layout.go.
	nhwc bool
}

// stored returns the value with its layout set.
func (v value) stored(nhwc bool) value {
	v.nhwc = nhwc
	return v
}

// graph is an ONNX graph under construction.
type graph struct {
	proto     *onnx.GraphProto
	constants map[string]value
	names     int
	// opset is the ONNX operator set version.
	opset int
	// batch is the name of the batch dimension if the graph accepts any number of images,
	// and empty if all sizes are fixed.
	batch string
	// extensions reports whether the graph may use ONNX Runtime's own operators, extended
	// whether it does.
	extensions, extended bool
	// kernels reports whether the graph uses operators of package kernels.
	kernels bool
}

func newGraph(name string, extensions bool) *graph {
	return &graph{
		proto:      &onnx.GraphProto{Name: proto.String(name)},
		opset:      Opset,
		constants:  map[string]value{},
		extensions: extensions,
	}
}

// attribute sets one attribute of a node.
type attribute func(*onnx.NodeProto)

func intAttr(name string, v int) attribute {
	return func(n *onnx.NodeProto) {
		n.Attribute = append(n.Attribute, &onnx.AttributeProto{
			Name: proto.String(name), Type: onnx.AttributeProto_INT.Enum(), I: proto.Int64(int64(v)),
		})
	}
}

func flagAttr(name string, set bool) attribute {
	if set {
		return intAttr(name, 1)
	}
	return intAttr(name, 0)
}

func intsAttr(name string, vs ...int) attribute {
	return func(n *onnx.NodeProto) {
		n.Attribute = append(n.Attribute, &onnx.AttributeProto{
			Name: proto.String(name), Type: onnx.AttributeProto_INTS.Enum(), Ints: int64s(vs),
		})
	}
}

func floatAttr(name string, v float32) attribute {
	return func(n *onnx.NodeProto) {
		n.Attribute = append(n.Attribute, &onnx.AttributeProto{
			Name: proto.String(name), Type: onnx.AttributeProto_FLOAT.Enum(), F: proto.Float32(v),
		})
	}
}

func textAttr(name, v string) attribute {
	return func(n *onnx.NodeProto) {
		n.Attribute = append(n.Attribute, &onnx.AttributeProto{
			Name: proto.String(name), Type: onnx.AttributeProto_STRING.Enum(), S: []byte(v),
		})
	}
}

// op adds a node of a standard ONNX operator with one output of the given shape.
func (g *graph) op(opType string, shape []int, inputs []value, attrs ...attribute) value {
	return g.domainOp("", opType, shape, inputs, attrs...)
}

// microsoftOp adds a node of an operator of ONNX Runtime. It returns an error if the graph
// may contain standard operators only.
func (g *graph) microsoftOp(opType string, shape []int, inputs []value, attrs ...attribute) (value, error) {
	if !g.extensions {
		return value{}, fmt.Errorf("exporter: %s is not a standard ONNX operator, and %s may contain no others",
			opType, g.proto.GetName())
	}
	g.extended = true
	return g.domainOp(microsoft, opType, shape, inputs, attrs...), nil
}

func (g *graph) domainOp(domain, opType string, shape []int, inputs []value, attrs ...attribute) value {
	return g.ops(domain, opType, [][]int{shape}, inputs, attrs...)[0]
}

// ops adds a node with one output for each of the shapes.
func (g *graph) ops(domain, opType string, shapes [][]int, inputs []value, attrs ...attribute) []value {
	g.names++
	n := &onnx.NodeProto{
		Name:   proto.String(fmt.Sprintf("%s_%d", opType, g.names)),
		OpType: proto.String(opType),
	}
	if domain != "" {
		n.Domain = proto.String(domain)
	}
	for _, in := range inputs {
		n.Input = append(n.Input, in.name)
	}
	for _, a := range attrs {
		a(n)
	}
	out := make([]value, len(shapes))
	for i, s := range shapes {
		out[i] = value{name: fmt.Sprintf("%s:%d", n.GetName(), i), shape: s}
		n.Output = append(n.Output, out[i].name)
	}
	g.proto.Node = append(g.proto.Node, n)
	return out
}

// floats returns a constant of float32. Equal constants share one initializer.
func (g *graph) floats(shape []int, vs ...float32) value {
	raw := make([]byte, 0, 4*len(vs))
	for _, v := range vs {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
	}
	return g.constant(onnx.TensorProto_FLOAT, shape, raw)
}

// ints returns a constant vector of int64.
func (g *graph) ints(vs ...int) value {
	raw := make([]byte, 0, 8*len(vs))
	for _, v := range vs {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(v))
	}
	return g.constant(onnx.TensorProto_INT64, []int{len(vs)}, raw)
}

func (g *graph) constant(t onnx.TensorProto_DataType, shape []int, raw []byte) value {
	key := fmt.Sprint(t, shape, string(raw))
	if v, ok := g.constants[key]; ok {
		return v
	}
	v := value{name: fmt.Sprintf("constant_%d", len(g.constants)+1), shape: shape}
	g.constants[key] = v
	g.initializer(v.name, t, shape, raw)
	return v
}

func (g *graph) initializer(name string, t onnx.TensorProto_DataType, shape []int, raw []byte) {
	g.proto.Initializer = append(g.proto.Initializer, &onnx.TensorProto{
		Name: proto.String(name), DataType: proto.Int32(int32(t)), Dims: int64s(shape), RawData: raw,
	})
}

// parameter adds learned weights as an initializer.
func (g *graph) parameter(name string, shape []int, data []float32) {
	raw := make([]byte, 0, 4*len(data))
	for _, v := range data {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
	}
	g.initializer(name, onnx.TensorProto_FLOAT, shape, raw)
}

func (g *graph) input(v value, doc string) {
	g.proto.Input = append(g.proto.Input, describe(v.name, onnx.TensorProto_FLOAT, g.dims(v), doc))
}

func (g *graph) output(v value, doc string) {
	g.proto.Output = append(g.proto.Output, describe(v.name, onnx.TensorProto_FLOAT, g.dims(v), doc))
}

// dims returns the dimensions of a tensor. The first is named if the graph accepts any
// number of images.
func (g *graph) dims(v value) []dim {
	out := make([]dim, len(v.shape))
	for i, d := range v.shape {
		out[i].size = d
		if i == 0 {
			out[i].name = g.batch
		}
	}
	return out
}

// dim is a dimension of an input or an output. Its size is fixed if it has no name.
type dim struct {
	size int
	name string
}

// describe returns the declaration of an input or an output.
func describe(name string, t onnx.TensorProto_DataType, dims []dim, doc string) *onnx.ValueInfoProto {
	shape := &onnx.TensorShapeProto{}
	for _, d := range dims {
		p := &onnx.TensorShapeProto_Dimension{Value: &onnx.TensorShapeProto_Dimension_DimValue{DimValue: int64(d.size)}}
		if d.name != "" {
			p.Value = &onnx.TensorShapeProto_Dimension_DimParam{DimParam: d.name}
		}
		shape.Dim = append(shape.Dim, p)
	}
	info := &onnx.ValueInfoProto{
		Name: proto.String(name),
		Type: &onnx.TypeProto{Value: &onnx.TypeProto_TensorType{TensorType: &onnx.TypeProto_Tensor{
			ElemType: proto.Int32(int32(t)), Shape: shape,
		}}},
	}
	if doc != "" {
		info.DocString = proto.String(doc)
	}
	return info
}

// rename renames a tensor in all nodes, for outputs with fixed names.
func (g *graph) rename(from, to string) {
	for _, n := range g.proto.Node {
		for i, s := range n.Input {
			if s == from {
				n.Input[i] = to
			}
		}
		for i, s := range n.Output {
			if s == from {
				n.Output[i] = to
			}
		}
	}
}

// prune removes the nodes that no output depends on.
func (g *graph) prune() {
	wanted := map[string]bool{}
	for _, o := range g.proto.Output {
		wanted[o.GetName()] = true
	}
	kept := g.proto.Node[:0:0]
	for _, n := range slices.Backward(g.proto.Node) {
		if !slices.ContainsFunc(n.Output, func(name string) bool { return wanted[name] }) {
			continue
		}
		for _, in := range n.Input {
			wanted[in] = true
		}
		kept = append(kept, n)
	}
	slices.Reverse(kept)
	g.proto.Node = kept
}

// model returns the finished graph as an ONNX file. Equal graphs result in equal bytes.
func (g *graph) model(doc string, props [][2]string) ([]byte, error) {
	m := &onnx.ModelProto{
		IrVersion:    proto.Int64(irVersion),
		ProducerName: proto.String("deepmed-anomaly"),
		Graph:        g.proto,
		OpsetImport:  []*onnx.OperatorSetIdProto{{Domain: proto.String(""), Version: proto.Int64(int64(g.opset))}},
	}
	if doc != "" {
		m.DocString = proto.String(doc)
	}
	if g.extended {
		m.OpsetImport = append(m.OpsetImport, &onnx.OperatorSetIdProto{Domain: proto.String(microsoft), Version: proto.Int64(1)})
	}
	if g.kernels {
		m.OpsetImport = append(m.OpsetImport, &onnx.OperatorSetIdProto{Domain: proto.String(kernels.Domain), Version: proto.Int64(kernels.Version)})
	}
	for _, p := range props {
		m.MetadataProps = append(m.MetadataProps, &onnx.StringStringEntryProto{Key: proto.String(p[0]), Value: proto.String(p[1])})
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("exporter: writing %s: %w", g.proto.GetName(), err)
	}
	return b, nil
}

func int64s(in []int) []int64 {
	out := make([]int64, len(in))
	for i, v := range in {
		out[i] = int64(v)
	}
	return out
}

// broadcast returns the shape of an elementwise operator's result by ONNX's rules.
func broadcast(a, b []int) []int {
	if len(a) < len(b) {
		a, b = b, a
	}
	out := slices.Clone(a)
	for i, d := range b {
		j := len(a) - len(b) + i
		out[j] = max(out[j], d)
	}
	return out
}
