package importer

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/models"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// node returns the first node of an operator.
func node(t *testing.T, m *onnx.ModelProto, op string) *onnx.NodeProto {
	t.Helper()
	for _, n := range m.GetGraph().GetNode() {
		if n.GetOpType() == op {
			return n
		}
	}
	t.Fatalf("there is no %s", op)
	return nil
}

// initializer returns the first initializer whose name has the prefix.
func initializer(t *testing.T, m *onnx.ModelProto, prefix string) *onnx.TensorProto {
	t.Helper()
	for _, i := range m.GetGraph().GetInitializer() {
		if strings.HasPrefix(i.GetName(), prefix) {
			return i
		}
	}
	t.Fatalf("there is no %s…", prefix)
	return nil
}

// attribute returns the attribute of a node.
func attribute(t *testing.T, n *onnx.NodeProto, name string) *onnx.AttributeProto {
	t.Helper()
	for _, a := range n.GetAttribute() {
		if a.GetName() == name {
			return a
		}
	}
	t.Fatalf("%s has no %s", n.GetOpType(), name)
	return nil
}

func dims(i *onnx.ValueInfoProto) []*onnx.TensorShapeProto_Dimension {
	return i.GetType().GetTensorType().GetShape().GetDim()
}

func sized(n int64) *onnx.TensorShapeProto_Dimension_DimValue {
	return &onnx.TensorShapeProto_Dimension_DimValue{DimValue: n}
}

// The error for a file with a single change must name the change.
func TestRead_RejectsModifiedFile(t *testing.T) {
	data := exported(t, untrained(8, 3, 4, 8))
	for _, c := range []struct {
		name string
		edit func(t *testing.T, m *onnx.ModelProto)
		err  error
		text string
	}{
		{"an unknown operator", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Sigmoid").OpType = proto.String("Tanh") }, ErrUnsupported, "Tanh"},
		{"an operator without a name", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Sigmoid").OpType = nil }, ErrUnsupported, "operator"},
		{"an operator of another domain", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Conv").Domain = proto.String("com.microsoft") }, ErrUnsupported, "com.microsoft"},
		{"another stride", func(t *testing.T, m *onnx.ModelProto) {
			attribute(t, node(t, m, "Conv"), "strides").Ints = []int64{1, 1}
		}, ErrUnsupported, "strides"},
		{"another padding", func(t *testing.T, m *onnx.ModelProto) {
			attribute(t, node(t, m, "ConvTranspose"), "pads").Ints = []int64{0, 0, 1, 1}
		}, ErrUnsupported, "pads"},
		{"another kernel", func(t *testing.T, m *onnx.ModelProto) {
			attribute(t, node(t, m, "Conv"), "kernel_shape").Ints = []int64{5, 5}
		}, ErrUnsupported, "kernel_shape"},
		{"no output padding", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "ConvTranspose")
			n.Attribute = n.Attribute[:3]
		}, ErrUnsupported, "output_padding"},
		{"an attribute too many", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "Conv")
			n.Attribute = append(n.Attribute, &onnx.AttributeProto{Name: proto.String("group"), I: proto.Int64(1), Type: onnx.AttributeProto_INT.Enum()})
		}, ErrUnsupported, "group"},
		{"an attribute of no type", func(t *testing.T, m *onnx.ModelProto) { attribute(t, node(t, m, "Conv"), "pads").Type = nil }, ErrUnsupported, "pads"},
		{"an attribute that is a tensor", func(t *testing.T, m *onnx.ModelProto) {
			attribute(t, node(t, m, "Conv"), "pads").Type = onnx.AttributeProto_TENSOR.Enum()
		}, ErrUnsupported, "TENSOR"},
		{"a sum that keeps its axes", func(t *testing.T, m *onnx.ModelProto) {
			attribute(t, node(t, m, "ReduceSum"), "keepdims").I = proto.Int64(1)
		}, ErrUnsupported, "keepdims"},
		{"a sum over the batch too", func(t *testing.T, m *onnx.ModelProto) {
			initializer(t, m, "constant_3").RawData[0] = 0
		}, ErrUnsupported, "axes [0 2]"},
		{"axes beyond the shape", func(t *testing.T, m *onnx.ModelProto) {
			initializer(t, m, "constant_3").RawData[8] = 4
		}, ErrUnsupported, "axes [1 4]"},
		{"axes below 0", func(t *testing.T, m *onnx.ModelProto) {
			copy(initializer(t, m, "constant_3").RawData, bytes.Repeat([]byte{0xff}, 8))
		}, ErrUnsupported, "axes [-1 2]"},
		{"axes out of order", func(t *testing.T, m *onnx.ModelProto) {
			initializer(t, m, "constant_3").RawData[8] = 1
		}, ErrUnsupported, "axes [1 1]"},
		{"a sum without axes", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "ReduceSum")
			n.Input = n.Input[:1]
		}, ErrUnsupported, "axes"},
		{"a mean by another number", func(t *testing.T, m *onnx.ModelProto) {
			initializer(t, m, "constant_2").RawData[2] = 0x80 // 4 instead of 3
		}, ErrUnsupported, "sizes"},
		{"a sum that is not divided", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "Div")
			n.OpType, n.Input = proto.String("Relu"), n.Input[:1]
		}, ErrUnsupported, "is a constant or a sum"},
		{"a division that is no mean", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "Div")
			n.Input[0] = "image"
		}, ErrUnsupported, "mean"},
		{"a product that is no square", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Mul").Input[1] = "image" }, ErrUnsupported, "product"},
		{"another operator set", func(t *testing.T, m *onnx.ModelProto) { m.OpsetImport[0].Version = proto.Int64(11) }, ErrUnsupported, "operator sets"},
		{"a second operator set", func(t *testing.T, m *onnx.ModelProto) {
			m.OpsetImport = append(m.OpsetImport, &onnx.OperatorSetIdProto{Domain: proto.String("com.microsoft"), Version: proto.Int64(1)})
		}, ErrUnsupported, "com.microsoft"},
		{"weights of half precision", func(t *testing.T, m *onnx.ModelProto) {
			initializer(t, m, "encoder").DataType = proto.Int32(int32(onnx.TensorProto_FLOAT16))
		}, ErrUnsupported, "encoder.0.weight"},
		{"weights that are numbers, not bytes", func(t *testing.T, m *onnx.ModelProto) { initializer(t, m, "encoder").FloatData = []float32{1} }, ErrUnsupported, "encoder.0.weight"},
		{"weights in another file", func(t *testing.T, m *onnx.ModelProto) {
			initializer(t, m, "encoder").DataLocation = onnx.TensorProto_EXTERNAL.Enum()
		}, ErrUnsupported, "encoder.0.weight"},
		{"weights of whole numbers", func(t *testing.T, m *onnx.ModelProto) {
			i := initializer(t, m, "encoder")
			i.DataType, i.Dims = proto.Int32(int32(onnx.TensorProto_INT64)), []int64{2, 3, 3, 3}
		}, ErrUnsupported, "encoder.0.weight"},
		{"a batch of a fixed size", func(t *testing.T, m *onnx.ModelProto) { dims(m.Graph.Input[0])[0].Value = sized(1) }, ErrUnsupported, "image"},
		{"images of four channels", func(t *testing.T, m *onnx.ModelProto) { dims(m.Graph.Input[0])[1].Value = sized(4) }, ErrUnsupported, "image"},
		{"images of no size", func(t *testing.T, m *onnx.ModelProto) { dims(m.Graph.Input[0])[2].Value = sized(0) }, ErrUnsupported, "image"},
		{"images without end", func(t *testing.T, m *onnx.ModelProto) {
			for _, v := range []*onnx.ValueInfoProto{m.Graph.Input[0], m.Graph.Output[0]} {
				dims(v)[2].Value, dims(v)[3].Value = sized(1<<40), sized(1<<40)
			}
		}, ErrUnsupported, "image"},
		{"images of whole numbers", func(t *testing.T, m *onnx.ModelProto) {
			m.Graph.Input[0].GetType().GetTensorType().ElemType = proto.Int32(int32(onnx.TensorProto_UINT8))
		}, ErrUnsupported, "image"},
		{"an input without a type", func(t *testing.T, m *onnx.ModelProto) { m.Graph.Input[0].Type = nil }, ErrUnsupported, "image"},
		{"another input", func(t *testing.T, m *onnx.ModelProto) { m.Graph.Input = append(m.Graph.Input, m.Graph.Input[0]) }, ErrUnsupported, "2 inputs"},
		{"outputs in another order", func(t *testing.T, m *onnx.ModelProto) { slices.Reverse(m.Graph.Output) }, ErrUnsupported, "reconstruction_error"},
		{"a weight that is only described", func(t *testing.T, m *onnx.ModelProto) {
			m.Graph.ValueInfo = append(m.Graph.ValueInfo, m.Graph.Input[0])
		}, ErrUnsupported, "1 described values"},
		{"two results", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "Relu")
			n.Output = append(n.Output, "mask")
		}, ErrUnsupported, "Relu has 2 results"},
		{"a field that the schema leaves out", func(t *testing.T, m *onnx.ModelProto) {
			node(t, m, "Relu").ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
		}, ErrUnsupported, "node[1]"},

		{"no nodes", func(t *testing.T, m *onnx.ModelProto) { m.Graph.Node = nil }, ErrFormat, "graph"},
		{"no graph", func(t *testing.T, m *onnx.ModelProto) { m.Graph = nil }, ErrFormat, "graph"},
		{"a missing initializer", func(t *testing.T, m *onnx.ModelProto) { m.Graph.Initializer = m.Graph.Initializer[1:] }, ErrFormat, "encoder.0.weight is used"},
		{"an initializer twice", func(t *testing.T, m *onnx.ModelProto) {
			m.Graph.Initializer = append(m.Graph.Initializer, m.Graph.Initializer[0])
		}, ErrFormat, "encoder.0.weight is defined twice"},
		{"an initializer without a name", func(t *testing.T, m *onnx.ModelProto) { initializer(t, m, "encoder").Name = nil }, ErrFormat, "name"},
		{"an initializer that is the image", func(t *testing.T, m *onnx.ModelProto) { initializer(t, m, "encoder").Name = proto.String("image") }, ErrFormat, "image is defined twice"},
		{"an initializer that nothing uses", func(t *testing.T, m *onnx.ModelProto) {
			m.Graph.Initializer = append(m.Graph.Initializer, &onnx.TensorProto{Name: proto.String("spare"),
				DataType: proto.Int32(int32(onnx.TensorProto_FLOAT)), RawData: make([]byte, 4)})
		}, ErrFormat, "spare"},
		{"a value that nothing uses", func(t *testing.T, m *onnx.ModelProto) {
			m.Graph.Node = append(m.Graph.Node, &onnx.NodeProto{OpType: proto.String("Relu"), Input: []string{"image"}, Output: []string{"spare"}})
		}, ErrFormat, "spare"},
		{"data cut short", func(t *testing.T, m *onnx.ModelProto) {
			i := initializer(t, m, "encoder")
			i.RawData = i.RawData[4:]
		}, ErrFormat, "encoder.0.weight"},
		{"a size without data", func(t *testing.T, m *onnx.ModelProto) {
			i := initializer(t, m, "encoder")
			i.Dims, i.RawData = []int64{1 << 40}, []byte{}
		}, ErrFormat, "encoder.0.weight"},
		{"sizes whose product is beyond counting", func(t *testing.T, m *onnx.ModelProto) {
			initializer(t, m, "encoder").Dims = []int64{1 << 32, 1 << 32, 1, 1}
		}, ErrFormat, "encoder.0.weight"},
		{"a size below 0", func(t *testing.T, m *onnx.ModelProto) { initializer(t, m, "encoder").Dims = []int64{-4, -3, 3, 3} }, ErrFormat, "encoder.0.weight"},
		{"a cycle", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Relu").Input[0] = "Relu_4:0" }, ErrFormat, "Relu_4:0"},
		{"a node that feeds itself", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "Relu")
			n.Input[0] = n.Output[0]
		}, ErrFormat, "its own operand"},
		{"nodes out of order", func(t *testing.T, m *onnx.ModelProto) { slices.Reverse(m.Graph.Node) }, ErrFormat, "Div"},
		{"a value that is computed twice", func(t *testing.T, m *onnx.ModelProto) {
			m.Graph.Node = slices.Insert(m.Graph.Node, 1, m.Graph.Node[0])
		}, ErrFormat, "Conv_1:0 is defined twice"},
		{"a weight that is computed", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Relu").Output[0] = "encoder.2.weight" }, ErrFormat, "encoder.2.weight is defined twice"},
		{"the image as a result", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Relu").Output[0] = "image" }, ErrFormat, "image is defined twice"},
		{"an output that nothing computes", func(t *testing.T, m *onnx.ModelProto) { m.Graph.Node = m.Graph.Node[:len(m.Graph.Node)-1] }, ErrFormat, ""},
		{"an operator without operands", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Relu").Input = nil }, ErrFormat, "Relu"},
		{"an operator with too many", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "Relu")
			n.Input = append(n.Input, "image")
		}, ErrFormat, "2 operands"},
		{"a convolution without a bias", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "Conv")
			n.Input = n.Input[:2]
		}, ErrFormat, "2 operands"},
		{"the weights of another layer", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Conv").Input[1] = "encoder.2.weight" }, ErrFormat, "Conv"},
		{"the bias of another layer", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Conv").Input[2] = "encoder.2.bias" }, ErrFormat, "biases"},
		{"weight and bias exchanged", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "Conv")
			n.Input[1], n.Input[2] = n.Input[2], n.Input[1]
		}, ErrFormat, "kernel"},
		{"a difference of different shapes", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Sub").Input[1] = "Relu_2:0" }, ErrFormat, "shapes"},
		{"a difference from a weight", func(t *testing.T, m *onnx.ModelProto) { node(t, m, "Sub").Input[1] = "encoder.0.bias" }, ErrFormat, "shapes"},
		{"images that do not halve", func(t *testing.T, m *onnx.ModelProto) {
			for _, v := range []*onnx.ValueInfoProto{m.Graph.Input[0], m.Graph.Output[0]} {
				dims(v)[2].Value, dims(v)[3].Value = sized(7), sized(7)
			}
		}, ErrFormat, "shapes"},

		{"a parameter of another name", func(t *testing.T, m *onnx.ModelProto) {
			initializer(t, m, "decoder").Name = proto.String("decoder.0.w")
			node(t, m, "ConvTranspose").Input[1] = "decoder.0.w"
		}, models.ErrArchitecture, "decoder.0.weight is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m onnx.ModelProto
			if err := proto.Unmarshal(data, &m); err != nil {
				t.Fatal(err)
			}
			c.edit(t, &m)
			edited, err := proto.Marshal(&m)
			if err != nil {
				t.Fatal(err)
			}
			f, weights, err := Read(edited, 1)
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") || f != nil || weights != nil {
				t.Errorf("got %v, want %q in one line with %q", err, c.err, c.text)
			}
		})
	}
}

func TestRead_RejectsOtherData(t *testing.T) {
	model := untrained(8, 3, 4, 8)
	data := exported(t, model)
	step, err := exporter.GradientModel(model.Architecture, 1, 8, 8, exporter.Portable)
	if err != nil {
		t.Fatal(err)
	}
	// An attribute that is a graph of a node with an attribute, and so on. Package onnx
	// does not define that field; onnx-go would decode it recursively.
	var nested []byte
	for range 2_000 {
		for _, field := range []protowire.Number{6, 5, 1} {
			nested = protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), nested)
		}
	}
	for _, c := range []struct {
		name string
		data []byte
		err  error
	}{
		{"nothing", nil, ErrFormat},
		{"prose", []byte("not a model"), ErrFormat},
		{"half a model", data[:len(data)/2], ErrFormat},
		{"a model without its first byte", data[1:], ErrFormat},
		{"a training step", step.ONNX, ErrUnsupported},
		{"graphs in graphs", protowire.AppendBytes(protowire.AppendTag(nil, 7, protowire.BytesType), nested), ErrUnsupported},
	} {
		if _, _, err := Read(c.data, 1); !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.err)
		}
	}
	// A file that is truncated before the end of the operator set, which follows the
	// graph, must be rejected.
	set := protowire.AppendBytes(protowire.AppendTag(nil, 8, protowire.BytesType), []byte{0x0a, 0, 0x10, exporter.Opset})
	end := bytes.Index(data, set) + len(set)
	if end < len(data)/2 {
		t.Fatal("there is no operator set after the graph")
	}
	for n := range end {
		if _, _, err := Read(data[:n], 1); !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsupported) {
			t.Fatalf("truncated to %d of %d bytes: %v", n, len(data), err)
		}
	}
	if _, _, err := Read(data, 0); err == nil {
		t.Error("a batch size of 0 is accepted")
	}
}

// Read must not panic and must return only its documented errors. Files that it accepts must
// round-trip.
func FuzzRead(f *testing.F) {
	data := exported(f, untrained(2, 3, 1))
	f.Add(data)
	f.Add(exported(f, untrained(8, 3, 2, 1)))
	f.Add(data[:len(data)/2])
	f.Add(bytes.Replace(data, []byte("Sigmoid"), []byte("Softmax"), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		network, weights, err := Read(data, 2)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsupported) && !errors.Is(err, models.ErrArchitecture) {
				t.Fatal(err)
			}
			return
		}
		m := &models.Model{ImageSize: network.Image.Shape()[2], Weights: weights}
		first, err := exporter.Lower(network, m)
		if err != nil {
			t.Fatal(err)
		}
		if network, m.Weights, err = Read(first, 1); err != nil {
			t.Fatalf("cannot be read again: %v", err)
		}
		if second, err := exporter.Lower(network, m); err != nil || !bytes.Equal(first, second) {
			t.Errorf("%v: wrote %d bytes, then %d different bytes", err, len(first), len(second))
		}
	})
}
