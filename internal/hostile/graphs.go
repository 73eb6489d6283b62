package hostile

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/deepmed/anomaly/internal/onnx"
)

// graphs returns the ONNX files: damaged ones, and graphs that compute something else
// than the network that the weights belong to.
func graphs() []File {
	var files []File
	for _, f := range slices.Concat(externalData(), unordered(), unsupported(), differentNetworks(), misshapen(), encoded(), wrongMetadata()) {
		f.Class = ONNX
		files = append(files, f)
	}
	return files
}

// changed is a list of files derived from Network.
type changed []File

// model adds a file with a changed model.
func (c *changed) model(name string, want Reason, change func(*onnx.ModelProto)) {
	*c = append(*c, File{Name: name, Want: want, Data: Network(change)})
}

// graph adds a file with a changed graph.
func (c *changed) graph(name string, want Reason, change func(*onnx.GraphProto)) {
	c.model(name, want, func(m *onnx.ModelProto) { change(m.Graph) })
}

// first adds a file with a changed first weight tensor.
func (c *changed) first(name string, want Reason, change func(*onnx.TensorProto)) {
	c.graph(name, want, func(g *onnx.GraphProto) { change(g.Initializer[0]) })
}

// node adds a file with another node before the network.
func (c *changed) node(name string, want Reason, n *onnx.NodeProto) {
	c.graph(name, want, func(g *onnx.GraphProto) { g.Node = slices.Insert(g.Node, 0, n) })
}

// externalData returns files with tensors in other files.
func externalData() changed {
	var c changed
	outside := func(location string) *onnx.TensorProto {
		return &onnx.TensorProto{Name: proto.String("c"), DataType: proto.Int32(1), DataLocation: onnx.TensorProto_EXTERNAL.Enum(),
			ExternalData: []*onnx.StringStringEntryProto{Property("location", location), Property("offset", "0"), Property("length", "108")}}
	}
	for _, location := range []string{"../../../../../../etc/passwd", "/etc/passwd", "weights.bin", `\\host\share\x`, "/dev/zero"} {
		c.first("weights in "+location, Format, func(t *onnx.TensorProto) {
			t.RawData, t.DataLocation, t.ExternalData = nil, outside(location).DataLocation, outside(location).ExternalData
		})
	}
	c.first("weights in no file at all", Format, func(t *onnx.TensorProto) { t.DataLocation = onnx.TensorProto_EXTERNAL.Enum() })
	c.graph("a constant in another file", Format, func(g *onnx.GraphProto) { g.Initializer = append(g.Initializer, outside("../x")) })
	c.node("a constant's attribute in another file", Format, Node("Constant", nil, "c", &onnx.AttributeProto{Name: proto.String("value"),
		Type: onnx.AttributeProto_TENSOR.Enum(), T: outside("../x")}))
	return c
}

// unordered returns graphs that use undefined values or define a value twice.
func unordered() changed {
	var c changed
	c.node("a node that uses its own result", Format, Node("Add", []string{"image", "x"}, "x"))
	c.graph("two nodes that use each other's result", Format, func(g *onnx.GraphProto) {
		g.Node = append(g.Node, Node("Abs", []string{"y"}, "x"), Node("Abs", []string{"x"}, "y"))
	})
	c.graph("a cycle through the network", Format, func(g *onnx.GraphProto) {
		g.Node = slices.Insert(g.Node, 0, Node("Add", []string{"image", "reconstruction"}, "again"))
		g.Node[1].Input[0] = "again"
	})
	c.graph("nodes in reverse order", Format, func(g *onnx.GraphProto) { slices.Reverse(g.Node) })
	c.node("an undefined node input", Format, Node("Abs", []string{"nowhere"}, "x"))
	c.graph("no graph input", Format, func(g *onnx.GraphProto) { g.Input = nil })
	c.graph("an undefined bias", Architecture, func(g *onnx.GraphProto) { g.Initializer = slices.Delete(g.Initializer, 1, 2) })
	c.graph("an undefined output", Format, func(g *onnx.GraphProto) { g.Output = append(g.Output, value("nowhere")) })
	c.graph("no output", Architecture, func(g *onnx.GraphProto) { g.Output = nil })
	c.graph("an output without a name", Format, func(g *onnx.GraphProto) { g.Output = append(g.Output, value("")) })
	c.node("a result with the name of the input", Format, Node("Abs", []string{"image"}, "image"))
	c.node("a result with the name of a weight", Format, Node("Abs", []string{"image"}, "encoder.0.weight"))
	c.graph("a result defined twice", Format, func(g *onnx.GraphProto) { g.Node = append(g.Node, Node("Abs", []string{"image"}, "relu")) })
	c.graph("an input defined twice", Format, func(g *onnx.GraphProto) { g.Input = append(g.Input, g.Input[0]) })
	c.graph("an initializer defined twice", Format, func(g *onnx.GraphProto) { g.Initializer = append(g.Initializer, g.Initializer[0]) })
	c.graph("an input without a name", Format, func(g *onnx.GraphProto) { g.Input = append(g.Input, value("")) })
	c.graph("an initializer without a name", Format, func(g *onnx.GraphProto) { g.Initializer[0].Name = nil })
	return c
}

// unsupported returns graphs with functions, nested graphs and unsupported operators.
// The fields are part of ONNX's schema, but not of internal/onnx.
func unsupported() changed {
	const (
		modelTraining, modelFunctions           = 20, 25
		graphSparse                             = 15
		attributeGraph, attributeGraphs         = 6, 11
		attributeReference, attributeSparse     = 21, 22
		attributeTypeGraph, attributeTypeGraph2 = 5, 10
	)
	inner, err := proto.Marshal(network().Graph)
	must(err)
	holding := func(field protowire.Number, kind int32, content []byte) *onnx.AttributeProto {
		a := &onnx.AttributeProto{Name: proto.String("body"), Type: onnx.AttributeProto_AttributeType(kind).Enum()}
		Append(a, Field(field, content))
		return a
	}
	var c changed
	c.model("two graphs", Format, func(m *onnx.ModelProto) { Append(m, Field(7, inner)) })
	c.model("a function", Architecture, func(m *onnx.ModelProto) { Append(m, Field(modelFunctions, []byte("\x0a\x04Relu"))) })
	c.model("a function that calls itself", Architecture, func(m *onnx.ModelProto) {
		body, err := proto.Marshal(Node("F", []string{"x"}, "y"))
		must(err)
		Append(m, Field(modelFunctions, slices.Concat(Field(1, []byte("F")), Field(4, []byte("x")), Field(5, []byte("y")), Field(7, body))))
		m.Graph.Node[nodeRelu].OpType = proto.String("F")
	})
	c.model("a training step", Architecture, func(m *onnx.ModelProto) { Append(m, Field(modelTraining, Field(2, inner))) })
	c.graph("a sparse initializer", Architecture, func(g *onnx.GraphProto) { Append(g, Field(graphSparse, nil)) })
	c.node("If with two graphs", Architecture, Node("If", []string{"image"}, "x", holding(attributeGraph, attributeTypeGraph, inner)))
	c.node("Loop with a graph", Architecture, Node("Loop", []string{"image"}, "x", holding(attributeGraph, attributeTypeGraph, inner)))
	c.node("a graph in a plain operator", Architecture, Node("Abs", []string{"image"}, "x", holding(attributeGraph, attributeTypeGraph, inner)))
	c.node("graphs in a plain operator", Architecture, Node("Abs", []string{"image"}, "x", holding(attributeGraphs, attributeTypeGraph2, inner)))
	nested := inner
	for range 200 {
		nested = Field(1, Field(5, Field(attributeGraph, nested)))
	}
	c.node("graphs nested 200 deep", Architecture, Node("Abs", []string{"image"}, "x", holding(attributeGraph, attributeTypeGraph, nested)))
	c.node("a reference to a function's attribute", Architecture, Node("Abs", []string{"image"}, "x", holding(attributeReference, 1, []byte("alpha"))))
	c.node("a sparse constant", Architecture, Node("Constant", nil, "x", holding(attributeSparse, 11, nil)))
	c.node("an unknown operator", Architecture, Node("RunShellCommand", []string{"image"}, "x"))
	c.node("an operator without a type", Architecture, Node("", []string{"image"}, "x"))
	c.node("a random operator", Architecture, Node("RandomUniformLike", []string{"image"}, "x"))
	c.node("a recurrent operator", Architecture, Node("LSTM", []string{"image"}, "x"))
	for _, domain := range []string{"com.microsoft", "ai.onnx.ml", "../../lib.so"} {
		n := Node("Abs", []string{"image"}, "x")
		n.Domain = &domain
		c.node("an operator of the domain "+domain, Architecture, n)
	}
	c.model("no opset version", Format, func(m *onnx.ModelProto) { m.OpsetImport = nil })
	c.model("opset version 1", Format, func(m *onnx.ModelProto) { m.OpsetImport[0].Version = proto.Int64(1) })
	c.model("a negative opset version", Format, func(m *onnx.ModelProto) { m.OpsetImport[0].Version = proto.Int64(math.MinInt64) })
	c.model("two opset versions", Format, func(m *onnx.ModelProto) {
		m.OpsetImport = append(m.OpsetImport, &onnx.OperatorSetIdProto{Domain: proto.String("ai.onnx"), Version: proto.Int64(9)})
	})
	return c
}

// differentNetworks returns well-formed graphs that compute something else.
func differentNetworks() changed {
	var c changed
	window := func(name string, node int, attribute string, with *onnx.AttributeProto) {
		c.graph(name, Architecture, func(g *onnx.GraphProto) {
			n := g.Node[node]
			n.Attribute = slices.DeleteFunc(slices.Clone(n.Attribute), func(a *onnx.AttributeProto) bool { return a.GetName() == attribute })
			if with != nil {
				n.Attribute = append(n.Attribute, with)
			}
		})
	}
	window("stride 1", nodeConv, "strides", Ints("strides", 1, 1))
	window("strides omitted", nodeConv, "strides", nil)
	window("one stride", nodeConv, "strides", Ints("strides", 2))
	window("a million strides", nodeConv, "strides", Ints("strides", make([]int64, 1<<20)...))
	window("strides that are not a list", nodeConv, "strides", Int("strides", 2))
	window("no padding", nodeConv, "pads", Ints("pads", 0, 0, 0, 0))
	window("padding omitted", nodeTransposed, "pads", nil)
	window("padding of 2^62", nodeConv, "pads", Ints("pads", 1<<62, 1<<62, 1<<62, 1<<62))
	window("dilation 2", nodeConv, "dilations", Ints("dilations", 2, 2))
	window("three groups", nodeConv, "group", Int("group", 3))
	window("a kernel of 5×5", nodeConv, "kernel_shape", Ints("kernel_shape", 5, 5))
	window("automatic padding", nodeConv, "pads", Text("auto_pad", "SAME_UPPER"))
	window("output padding omitted", nodeTransposed, "output_padding", nil)
	window("an output shape", nodeTransposed, "", Ints("output_shape", 64, 64))
	window("a Conv with an activation attribute", nodeConv, "", Text("activation", "Tanh"))
	window("a Relu with a slope attribute", nodeRelu, "", Int("alpha", 1))
	c.graph("strides twice", Format, func(g *onnx.GraphProto) {
		g.Node[nodeConv].Attribute = append(g.Node[nodeConv].Attribute, Ints("strides", 2, 2))
	})

	instead := func(name string, node int, change func(*onnx.NodeProto)) {
		c.graph(name, Architecture, func(g *onnx.GraphProto) { change(g.Node[node]) })
	}
	for _, op := range []string{"LeakyRelu", "Tanh", "BatchNormalization", "MaxPool", "Sigmoid", "Abs"} {
		instead("a "+op+" instead of the Relu", nodeRelu, func(n *onnx.NodeProto) { n.OpType = &op })
	}
	instead("a Relu instead of the Sigmoid", nodeSigmoid, func(n *onnx.NodeProto) { n.OpType = proto.String("Relu") })
	instead("a Conv instead of the ConvTranspose", nodeTransposed, func(n *onnx.NodeProto) { n.OpType = proto.String("Conv") })
	instead("a ConvTranspose instead of the Conv", nodeConv, func(n *onnx.NodeProto) { n.OpType = proto.String("ConvTranspose") })
	instead("another layer's weights", nodeTransposed, func(n *onnx.NodeProto) { n.Input[1] = "encoder.0.weight" })
	instead("another layer's bias", nodeConv, func(n *onnx.NodeProto) { n.Input[2] = "decoder.0.bias" })
	instead("a bias omitted", nodeConv, func(n *onnx.NodeProto) { n.Input = n.Input[:2] })
	instead("an empty bias name", nodeConv, func(n *onnx.NodeProto) { n.Input[2] = "" })
	instead("a decoder with the image as input", nodeTransposed, func(n *onnx.NodeProto) { n.Input[0] = "image" })
	c.graph("a network without its Relu", Architecture, func(g *onnx.GraphProto) {
		Drop(g, "relu")
		g.Node[1].Input[0] = "conv"
	})
	c.graph("a network without its Sigmoid", Architecture, func(g *onnx.GraphProto) {
		Drop(g, "reconstruction")
		g.Node[2].Output[0] = "reconstruction"
	})
	c.graph("a decoder only", Architecture, func(g *onnx.GraphProto) { g.Node = g.Node[2:]; g.Node[0].Input[0] = "image" })
	c.graph("no nodes", Architecture, func(g *onnx.GraphProto) { g.Node = nil })
	between := func(name string, n *onnx.NodeProto) {
		c.graph(name, Architecture, func(g *onnx.GraphProto) {
			g.Node = slices.Insert(g.Node, nodeTransposed, n)
			g.Node[nodeTransposed+1].Input[0] = n.Output[0]
		})
	}
	between("a residual", Node("Add", []string{"relu", "image"}, "more"))
	between("a scale within the network", Node("Mul", []string{"relu", "encoder.0.bias"}, "more"))
	between("noise within the network", Node("RandomNormalLike", []string{"relu"}, "more"))
	between("a second Relu", Node("Relu", []string{"relu"}, "more"))
	c.graph("an inner value as an output", Architecture, func(g *onnx.GraphProto) { g.Output = append(g.Output, value("relu")) })
	c.graph("an inner value used outside of the network", Architecture, func(g *onnx.GraphProto) {
		g.Node = append(g.Node, Node("Abs", []string{"relu"}, "side"))
	})
	c.graph("a second Sigmoid on the same value", Architecture, func(g *onnx.GraphProto) {
		g.Node = append(g.Node, Node("Sigmoid", []string{"transposed"}, "other"))
		g.Output = append(g.Output, value("other"))
	})
	c.graph("weights that are used twice", Architecture, func(g *onnx.GraphProto) {
		g.Node = append(g.Node, Node("Conv", []string{"reconstruction", "encoder.0.weight", "encoder.0.bias"}, "again", g.Node[nodeConv].Attribute...))
	})
	c.graph("weights that are scaled", Architecture, func(g *onnx.GraphProto) {
		g.Node = slices.Insert(g.Node, 0, Node("Neg", []string{"encoder.0.weight"}, "negative"))
		g.Node[1].Input[1] = "negative"
	})
	c.graph("weights that are computed", Architecture, func(g *onnx.GraphProto) {
		g.Node = slices.Insert(g.Node, 0, Node("Constant", nil, "zeros", Ints("value_ints", 0)))
		g.Node[1].Input[1] = "zeros"
	})
	c.graph("a network with a constant as input", Architecture, func(g *onnx.GraphProto) {
		g.Node = slices.Insert(g.Node, 0, Node("Constant", nil, "grey", Ints("value_ints", 0)))
		g.Node[1].Input[0] = "grey"
	})
	c.graph("a network whose result is unused", Architecture, func(g *onnx.GraphProto) {
		g.Node = append(g.Node, Node("Abs", []string{"image"}, "fine"))
		g.Output = []*onnx.ValueInfoProto{value("fine")}
	})
	c.graph("a Relu with two inputs", Architecture, func(g *onnx.GraphProto) { g.Node[nodeRelu].Input = []string{"conv", "image"} })
	c.graph("a Relu with two results", Format, func(g *onnx.GraphProto) { g.Node[nodeRelu].Output = []string{"relu", "more"} })
	c.graph("an Identity with two inputs", Format, func(g *onnx.GraphProto) {
		g.Node = slices.Insert(g.Node, nodeRelu, Node("Identity", []string{"image", "conv"}, "same"))
		g.Node[nodeRelu+1].Input[0] = "same"
	})
	return c
}

// misshapen returns graphs with wrong weights.
func misshapen() changed {
	var c changed
	dims := func(ds ...int64) func(*onnx.TensorProto) { return func(t *onnx.TensorProto) { t.Dims = ds } }
	c.model("no graph", Format, func(m *onnx.ModelProto) { m.Graph = nil })
	c.model("an empty graph", Architecture, func(m *onnx.ModelProto) { m.Graph = &onnx.GraphProto{} })
	c.first("another network's names", Architecture, func(t *onnx.TensorProto) { t.Name = proto.String("encoder.1.weight") })
	c.first("dims of 2 GB", Architecture, dims(1<<31, 1, 1, 1))
	c.first("dims that overflow", Architecture, dims(1<<62, 4, 3, 3))
	c.first("negative dims", Architecture, dims(-1, -3, 3, 3))
	c.first("dims of zero", Architecture, dims(0, 3, 3, 3))
	c.first("a thousand dims", Architecture, dims(make([]int64, 1000)...))
	c.first("no dims", Architecture, dims())
	c.first("dims in the wrong order", Architecture, dims(3, 1, 3, 3))
	c.first("wide dims without data", Architecture, dims(2048, 3, 3, 3))
	c.first("truncated data", Format, func(t *onnx.TensorProto) { t.RawData = t.RawData[:100] })
	c.first("data twice", Format, func(t *onnx.TensorProto) { t.FloatData = make([]float32, 27) })
	c.first("no data", Format, func(t *onnx.TensorProto) { t.RawData = nil })
	c.first("float16", Format, func(t *onnx.TensorProto) { t.DataType = proto.Int32(10) })
	c.first("an unknown data type", Format, func(t *onnx.TensorProto) { t.DataType = proto.Int32(-1) })
	c.first("integers", Architecture, func(t *onnx.TensorProto) { t.Int64Data = make([]int64, 27) })
	c.first("numbers that are not finite", Format, func(t *onnx.TensorProto) { t.RawData[3], t.RawData[2] = 0x7f, 0xff })
	return c
}

// encoded returns files with malicious or damaged protobuf encodings.
func encoded() []File {
	graph := func(b []byte) []byte { return slices.Concat(Field(8, []byte("\x10\x11")), Field(7, b)) }
	tensor := func(b []byte) []byte { return graph(Field(5, append(Field(8, []byte("encoder.0.weight")), b...))) }
	// An empty message of two bytes takes hundreds of bytes of memory when decoded.
	empty := func(field protowire.Number) []byte { return bytes.Repeat(Field(field, nil), 1<<20) }
	good := Network(nil)
	var files []File
	add := func(name string, want Reason, data []byte) {
		files = append(files, File{Name: name, Want: want, Data: data})
	}
	add("a million empty nodes", Architecture, graph(empty(1)))
	add("a million empty initializers", Format, graph(empty(5)))
	add("a million empty inputs", Format, graph(empty(11)))
	add("a million empty values", Architecture, graph(empty(13)))
	add("a million empty entries of metadata", Format, append(graph(nil), empty(14)...))
	add("a million empty opset versions", Format, append(graph(nil), empty(8)...))
	add("a million empty external data entries", Format, tensor(empty(13)))
	add("a million empty dims", Architecture, tensor(empty(1)))
	add("a million empty integers", Architecture, tensor(empty(7)))
	add("a million empty graphs", Format, empty(7))
	add("a million groups", Format, bytes.Repeat([]byte("\x0b"), 1<<20))
	add("a million empty attributes", TooLarge, Network(func(m *onnx.ModelProto) { Append(m.Graph.Node[0], empty(5)) }))
	add("a million empty results", TooLarge, Network(func(m *onnx.ModelProto) { Append(m.Graph.Node[0], empty(2)) }))
	add("5,000 nodes", TooLarge, Network(func(m *onnx.ModelProto) {
		n := Node("Constant", nil, "")
		for range 5000 {
			m.Graph.Node = append(m.Graph.Node, n)
		}
	}))
	add("10,000 names", TooLarge, Network(func(m *onnx.ModelProto) {
		for i := range 10_000 {
			m.Graph.Input = append(m.Graph.Input, value(string(binary.BigEndian.AppendUint32(nil, uint32(i)))))
		}
	}))
	add("a name of 100,000 bytes", TooLarge, Network(func(m *onnx.ModelProto) { m.Graph.Input = append(m.Graph.Input, value(strings.Repeat("n", 100_000))) }))
	add("a length beyond the end of the file", Format, append(bytes.Clone(good), "\x3a\xff\xff\xff\xff\x0f"...))
	add("a length of 2^63", Format, append(bytes.Clone(good), "\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"...))
	add("a length of 2^64-1", Format, append(bytes.Clone(good), "\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"...))
	add("a varint of eleven bytes", Format, append(bytes.Clone(good), "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"...))
	add("a varint that never ends", Format, append(bytes.Clone(good), bytes.Repeat([]byte{0xff}, 1000)...))
	add("field 0", Format, append(bytes.Clone(good), "\x02\x00"...))
	add("a field of wire type 7", Format, append(bytes.Clone(good), "\x0f"...))
	add("a group that is never closed", Format, append(bytes.Clone(good), "\x3b"...))
	add("a graph that is a number", Format, append(Field(8, []byte("\x10\x11")), "\x38\x01"...))
	add("a truncated dim", Format, Network(func(m *onnx.ModelProto) { Append(m.Graph.Initializer[0], Field(1, []byte{0xff})) }))
	add("a truncated stride", Format, Network(func(m *onnx.ModelProto) {
		a := Ints("strides", 2, 2)
		Append(a, Field(8, []byte{0x80}))
		m.Graph.Node[nodeConv].Attribute[4] = a
	}))
	add("half a file", Format, good[:len(good)/2])
	add("a thousand zero bytes", Format, make([]byte, 1000))
	add("a PNG", Format, []byte("\x89PNG\r\n\x1a\n0000"))
	add("an HTML page", Format, []byte("<!DOCTYPE html><html></html>"))
	return files
}

// wrongMetadata returns files with unusable metadata.
func wrongMetadata() changed {
	var c changed
	for _, d := range []struct {
		name, key, value string
	}{
		{"a threshold that is a word", "threshold", "high"},
		{"a threshold that is NaN", "threshold", "NaN"},
		{"a negative threshold", "threshold", "-1"},
		{"a threshold of a million digits", "threshold", strings.Repeat("1", 1<<20)},
		{"an image size that is a word", "image_size", "big"},
		{"a negative image size", "image_size", "-2"},
		{"an image size of a billion", "image_size", "1000000000"},
		{"class names without quotes", "class_names", "normal"},
		{"a million empty class names", "class_names", `[""` + strings.Repeat(`,""`, 1<<20) + `]`},
		{"metadata that is null", "metadata_json", "null"},
		{"metadata that is empty", "metadata_json", ""},
		{"metadata with a number of a million digits", "metadata_json", `{"threshold":` + strings.Repeat("1", 1<<20) + `}`},
		{"metadata of 9 MB", "metadata_json", strings.Repeat(" ", 9<<20)},
	} {
		c.model(d.name, Metadata, func(m *onnx.ModelProto) { m.MetadataProps = append(m.MetadataProps, Property(d.key, d.value)) })
	}
	c.model("a duplicate metadata key", Format, func(m *onnx.ModelProto) {
		m.MetadataProps = append(m.MetadataProps, Property("a", "1"), Property("a", "1"))
	})
	return c
}
