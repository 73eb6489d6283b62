package hostile

import (
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/deepmed/anomaly/internal/onnx"
)

// Network returns an ONNX file of the smallest network followed by the mean squared
// error, after change was applied to it, which may be nil. The weights count up from 0.
// The nodes are Conv, Relu, ConvTranspose, Sigmoid, Sub, Mul and ReduceMean.
func Network(change func(*onnx.ModelProto)) []byte {
	m := network()
	if change != nil {
		change(m)
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	must(err)
	return data
}

// Indices of the first nodes of Network.
const (
	nodeConv = iota
	nodeRelu
	nodeTransposed
	nodeSigmoid
	nodeSub
)

// network returns the model of Network.
func network() *onnx.ModelProto {
	g := &onnx.GraphProto{Name: proto.String("g")}
	v := float32(0)
	for _, p := range Parameters {
		t := &onnx.TensorProto{Name: proto.String(p.Name), DataType: proto.Int32(int32(onnx.TensorProto_FLOAT))}
		for _, d := range p.Shape {
			t.Dims = append(t.Dims, int64(d))
		}
		for range p.Size() {
			t.RawData = binary.LittleEndian.AppendUint32(t.RawData, math.Float32bits(v))
			v++
		}
		g.Initializer = append(g.Initializer, t)
	}
	window := []*onnx.AttributeProto{
		Ints("dilations", 1, 1), Int("group", 1), Ints("kernel_shape", 3, 3), Ints("pads", 1, 1, 1, 1), Ints("strides", 2, 2),
	}
	g.Node = []*onnx.NodeProto{
		Node("Conv", []string{"image", "encoder.0.weight", "encoder.0.bias"}, "conv", window...),
		Node("Relu", []string{"conv"}, "relu"),
		Node("ConvTranspose", []string{"relu", "decoder.0.weight", "decoder.0.bias"}, "transposed", append(window, Ints("output_padding", 1, 1))...),
		Node("Sigmoid", []string{"transposed"}, "reconstruction"),
		Node("Sub", []string{"reconstruction", "image"}, "difference"),
		Node("Mul", []string{"difference", "difference"}, "square"),
		Node("ReduceMean", []string{"square"}, "error", Ints("axes", 1, 2, 3), Int("keepdims", 0)),
	}
	g.Input = []*onnx.ValueInfoProto{value("image")}
	g.Output = []*onnx.ValueInfoProto{value("reconstruction"), value("error")}
	return &onnx.ModelProto{IrVersion: proto.Int64(8), Graph: g,
		OpsetImport: []*onnx.OperatorSetIdProto{{Domain: proto.String(""), Version: proto.Int64(17)}}}
}

// ImageNetwork returns an ONNX file of the smallest network with preprocessing and
// verdict: the input is an image of any size (H×W×3 bytes), the outputs are the mean
// squared error, the verdict and an anomaly map.
func ImageNetwork() []byte {
	return Network(func(m *onnx.ModelProto) {
		m.OpsetImport[0].Version = proto.Int64(18)
		g := m.Graph
		constant := func(name string, kind onnx.TensorProto_DataType, dims []int64, raw ...byte) {
			g.Initializer = append(g.Initializer, &onnx.TensorProto{Name: proto.String(name), DataType: proto.Int32(int32(kind)), Dims: dims, RawData: raw})
		}
		whole := func(name string, vs ...int64) {
			var raw []byte
			for _, v := range vs {
				raw = binary.LittleEndian.AppendUint64(raw, uint64(v))
			}
			constant(name, onnx.TensorProto_INT64, []int64{int64(len(vs))}, raw...)
		}
		number := func(name string, v float32) {
			constant(name, onnx.TensorProto_FLOAT, nil, binary.LittleEndian.AppendUint32(nil, math.Float32bits(v))...)
		}
		whole("first", 0)
		whole("sizes", 1, 3, 64, 64)
		whole("channels", 1)
		whole("all", 1, 2, 3)
		whole("map_shape", 64, 64)
		number("255", 255)
		number("threshold", 0.5)
		before := []*onnx.NodeProto{
			Node("Unsqueeze", []string{"photo", "first"}, "batch"),
			Node("Transpose", []string{"batch"}, "planes", Ints("perm", 0, 3, 1, 2)),
			Node("Cast", []string{"planes"}, "numbers", Int("to", 1)),
			Node("Resize", []string{"numbers", "", "", "sizes"}, "resized", Text("mode", "linear"), Int("antialias", 1)),
			Node("Div", []string{"resized", "255"}, "image"),
		}
		Drop(g, "error")
		g.Node = append(append(before, g.Node...),
			Node("ReduceMean", []string{"square", "all"}, "mean", Int("keepdims", 0)),
			Node("Greater", []string{"mean", "threshold"}, "is_anomaly"),
			Node("ReduceMean", []string{"square", "channels"}, "by_pixel", Int("keepdims", 1)),
			Node("Reshape", []string{"by_pixel", "map_shape"}, "map"),
		)
		g.Input = []*onnx.ValueInfoProto{typed("photo", onnx.TensorProto_UINT8)}
		g.Output = []*onnx.ValueInfoProto{value("mean"), typed("is_anomaly", onnx.TensorProto_BOOL), value("map")}
	})
}

// Node returns a node with one result.
func Node(op string, inputs []string, output string, attributes ...*onnx.AttributeProto) *onnx.NodeProto {
	return &onnx.NodeProto{OpType: proto.String(op), Input: inputs, Output: []string{output}, Attribute: attributes}
}

// Drop removes the node with this result.
func Drop(g *onnx.GraphProto, output string) {
	var kept []*onnx.NodeProto
	for _, n := range g.Node {
		if n.Output[0] != output {
			kept = append(kept, n)
		}
	}
	g.Node = kept
}

// Int returns an attribute with an integer.
func Int(name string, v int64) *onnx.AttributeProto {
	return &onnx.AttributeProto{Name: &name, Type: onnx.AttributeProto_INT.Enum(), I: &v}
}

// Ints returns an attribute with a list of integers.
func Ints(name string, vs ...int64) *onnx.AttributeProto {
	return &onnx.AttributeProto{Name: &name, Type: onnx.AttributeProto_INTS.Enum(), Ints: vs}
}

// Text returns an attribute with a string.
func Text(name, v string) *onnx.AttributeProto {
	return &onnx.AttributeProto{Name: &name, Type: onnx.AttributeProto_STRING.Enum(), S: []byte(v)}
}

// Property returns an entry of the file's metadata.
func Property(key, value string) *onnx.StringStringEntryProto {
	return &onnx.StringStringEntryProto{Key: &key, Value: &value}
}

// value returns an input or output of type float32 without a shape.
func value(name string) *onnx.ValueInfoProto { return typed(name, onnx.TensorProto_FLOAT) }

// typed returns an input or output of an element type without a shape.
func typed(name string, kind onnx.TensorProto_DataType) *onnx.ValueInfoProto {
	return &onnx.ValueInfoProto{Name: &name, Type: &onnx.TypeProto{Value: &onnx.TypeProto_TensorType{
		TensorType: &onnx.TypeProto_Tensor{ElemType: proto.Int32(int32(kind))}}}}
}

// Field returns an encoded length-delimited field. Its number need not be in
// internal/onnx/onnx.proto.
func Field(num protowire.Number, content []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), content)
}

// Append adds encoded fields to a message, as unknown fields.
func Append(m proto.Message, fields ...[]byte) {
	r := m.ProtoReflect()
	unknown := r.GetUnknown()
	for _, f := range fields {
		unknown = append(unknown, f...)
	}
	r.SetUnknown(unknown)
}
