package models

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/deepmed/anomaly/internal/hostile"
	"github.com/deepmed/anomaly/internal/onnx"
)

func TestReadONNX_AcceptsRawAndFloatData(t *testing.T) {
	for name, change := range map[string]func(*onnx.ModelProto){
		"raw": nil,
		"numbers": func(m *onnx.ModelProto) {
			for _, t := range m.Graph.Initializer {
				for i := 0; i < len(t.RawData); i += 4 {
					t.FloatData = append(t.FloatData, math.Float32frombits(binary.LittleEndian.Uint32(t.RawData[i:])))
				}
				t.RawData = nil
			}
		},
		"with initializers of other names": func(m *onnx.ModelProto) {
			m.Graph.Initializer = append(m.Graph.Initializer, &onnx.TensorProto{Name: proto.String("scale"), Int64Data: []int64{1}})
		},
	} {
		m, err := Read(tinyONNX(change), Limits{})
		if err != nil {
			t.Fatal(name, err)
		}
		if got := fmt.Sprint(m.Weights[3].Data); got != "[55 56 57]" || m.Format != FormatONNX || m.ImageSize != DefaultImageSize {
			t.Errorf("%s: the last bias is %v, the image size %d", name, got, m.ImageSize)
		}
	}
}

func TestReadONNX_UsesMetadataProps(t *testing.T) {
	for name, c := range map[string]struct {
		props []*onnx.StringStringEntryProto
		want  Metadata
	}{
		"nothing": {nil, Metadata{Threshold: DefaultThreshold, ImageSize: 256}},
		"single keys": {
			[]*onnx.StringStringEntryProto{prop("threshold", "0.5"), prop("class_names", `["a","b"]`), prop("image_size", "64"), prop("other", "x")},
			Metadata{Threshold: 0.5, ImageSize: 64, ClassNames: []string{"a", "b"}},
		},
		"metadata_json, which overrides": {
			[]*onnx.StringStringEntryProto{prop("threshold", "0.5"), prop("image_size", "64"), prop("metadata_json", `{"threshold":0.25,"image_size":32}`)},
			Metadata{Threshold: 0.25, ImageSize: 32},
		},
	} {
		m, err := Read(tinyONNX(func(m *onnx.ModelProto) { m.MetadataProps = c.props }), Limits{})
		if err != nil {
			t.Fatal(name, err)
		}
		if c.want.ModelType = ModelType; !reflect.DeepEqual(m.Metadata, c.want) {
			t.Errorf("%s: %+v, want %+v", name, m.Metadata, c.want)
		}
	}
}

// accepted returns valid encodings of the tiny network, with and without operators
// around it.
func accepted() map[string][]byte {
	graph := func(change func(*onnx.GraphProto)) []byte {
		return tinyONNX(func(m *onnx.ModelProto) { change(m.Graph) })
	}
	without := func(names ...string) []byte {
		return graph(func(g *onnx.GraphProto) {
			for _, n := range g.Node {
				n.Attribute = slices.DeleteFunc(slices.Clone(n.Attribute), func(a *onnx.AttributeProto) bool { return slices.Contains(names, a.GetName()) })
			}
		})
	}
	reconstruction := func(g *onnx.GraphProto) {
		g.Node, g.Output = g.Node[:4], g.Output[:1]
	}
	return map[string][]byte{
		"the reconstruction alone":           graph(reconstruction),
		"with the error as an output":        tinyONNX(nil),
		"from an image to a verdict and map": hostile.ImageNetwork(),
		"attributes left at their defaults":  without("dilations", "group", "kernel_shape"),
		"auto_pad NOTSET": graph(func(g *onnx.GraphProto) {
			g.Node[0].Attribute = append(g.Node[0].Attribute, hostile.Text("auto_pad", "NOTSET"))
		}),
		"ONNX's domain by its name": graph(func(g *onnx.GraphProto) { g.Node[0].Domain = proto.String("ai.onnx") }),
		"an unused domain": tinyONNX(func(m *onnx.ModelProto) {
			m.OpsetImport = append(m.OpsetImport, &onnx.OperatorSetIdProto{Domain: proto.String("ai.onnx.ml"), Version: proto.Int64(3)})
		}),
		"an Identity after each stage":  graph(identities),
		"initializers listed as inputs": graph(func(g *onnx.GraphProto) { g.Input = append(g.Input, info("encoder.0.weight"), info("decoder.0.bias")) }),
		"an omitted result": graph(func(g *onnx.GraphProto) {
			g.Node = append(g.Node, &onnx.NodeProto{OpType: proto.String("TopK"), Input: []string{"error", "error"}, Output: []string{"top", ""}})
		}),
		"a Relu and a Sigmoid after it": graph(func(g *onnx.GraphProto) {
			g.Node = append(g.Node, hostile.Node("Relu", []string{"error"}, "r"), hostile.Node("Sigmoid", []string{"r"}, "s"))
		}),
		"an operator before it": graph(func(g *onnx.GraphProto) {
			g.Node = slices.Insert(g.Node, 0, hostile.Node("Sqrt", []string{"image"}, "root"))
			g.Node[1].Input[0] = "root"
		}),
		"unpacked strides":         unpacked(),
		"nodes after initializers": nodesLast(),
	}
}

func info(name string) *onnx.ValueInfoProto { return &onnx.ValueInfoProto{Name: &name} }

// identities inserts an Identity after each stage.
func identities(g *onnx.GraphProto) {
	var nodes []*onnx.NodeProto
	for i, n := range g.Node {
		nodes = append(nodes, n)
		if i < 4 {
			nodes = append(nodes, hostile.Node("Identity", []string{n.Output[0]}, n.Output[0]+"'"))
			g.Node[i+1].Input[0] = n.Output[0] + "'"
		}
	}
	g.Node = nodes
}

// unpacked returns a network whose strides are in the unpacked encoding.
func unpacked() []byte {
	return tinyONNX(func(m *onnx.ModelProto) {
		for _, a := range m.Graph.Node[0].Attribute {
			if a.GetName() == "strides" {
				a.Ints = nil
				two := protowire.AppendVarint(protowire.AppendTag(nil, attributeInts, protowire.VarintType), 2)
				hostile.Append(a, two, two)
			}
		}
	})
}

// nodesLast returns a network whose graph has its nodes after all other fields.
func nodesLast() []byte {
	return tinyONNX(func(m *onnx.ModelProto) {
		var nodes [][]byte
		for _, n := range m.Graph.Node {
			data, err := proto.Marshal(n)
			if err != nil {
				panic(err)
			}
			nodes = append(nodes, hostile.Field(graphNode, data))
		}
		m.Graph.Node = nil
		hostile.Append(m.Graph, nodes...)
	})
}

func TestReadONNX_AcceptsPlainOperatorsAroundNetwork(t *testing.T) {
	for name, data := range accepted() {
		m, err := Read(data, Limits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(m.Architecture, tiny) || fmt.Sprint(m.Weights[3].Data) != "[55 56 57]" {
			t.Errorf("%s: a %s network with %v", name, m.Architecture, m.Weights[3])
		}
		if err := proto.Unmarshal(data, new(onnx.ModelProto)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, difference := range misread(data, m) {
			t.Errorf("%s: %s", name, difference)
		}
	}
}

// In a network of several layers, each stage must follow the one before it.
func TestReadONNX_ChecksEveryStageOfDeepNetwork(t *testing.T) {
	read := func(change func([]*onnx.NodeProto)) error {
		var m onnx.ModelProto
		if err := proto.Unmarshal(golden(t, "service.onnx"), &m); err != nil {
			t.Fatal(err)
		}
		change(m.Graph.Node)
		data, err := proto.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Read(data, Limits{})
		return err
	}
	if err := read(func([]*onnx.NodeProto) {}); err != nil {
		t.Fatal(err)
	}
	for stage := range 16 {
		if err := read(func(ns []*onnx.NodeProto) { ns[stage].OpType = proto.String("Abs") }); !errors.Is(err, ErrArchitecture) {
			t.Errorf("an Abs as stage %d was accepted: %v", stage+1, err)
		}
		if stage%2 != 0 {
			continue
		}
		for attribute := range 5 {
			if err := read(func(ns []*onnx.NodeProto) {
				a := ns[stage].Attribute[attribute]
				a.I, a.Ints = proto.Int64(7), []int64{7, 7}
			}); !errors.Is(err, ErrArchitecture) {
				t.Errorf("attribute %d of stage %d was not checked: %v", attribute, stage+1, err)
			}
		}
		other := (stage + 4) % 16
		if err := read(func(ns []*onnx.NodeProto) {
			ns[stage].Input[2], ns[other].Input[2] = ns[other].Input[2], ns[stage].Input[2]
		}); !errors.Is(err, ErrArchitecture) {
			t.Errorf("swapped biases of stages %d and %d were accepted: %v", stage+1, other+1, err)
		}
	}
}
