package importer

import (
	"errors"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/onnx"
	onnxgo "github.com/owulveryck/onnx-go"
	"google.golang.org/protobuf/proto"
	"gorgonia.org/gorgonia"
)

// lastBlock is the first block after which the backbone has had both kernel sizes, both
// strides and a residual block.
const lastBlock = 5

// backboneFile returns the file of a backbone with one output, named like an output of an
// inference model.
func backboneFile(t *testing.T) *onnx.ModelProto {
	t.Helper()
	m, err := exporter.FeaturesModel(32, backbone.Lite0(), []int{lastBlock}, exporter.Portable)
	if err != nil {
		t.Fatal(err)
	}
	var file onnx.ModelProto
	if err := proto.Unmarshal(m.ONNX, &file); err != nil {
		t.Fatal(err)
	}
	file.Graph.Output[0].Name = proto.String(network.ReconstructionName)
	nodes := file.Graph.Node
	nodes[len(nodes)-1].Output[0] = network.ReconstructionName
	return &file
}

// readBackbone returns the node of a file's output.
func readBackbone(t *testing.T, file *onnx.ModelProto) (*gorgonia.Node, error) {
	t.Helper()
	data, err := proto.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	b := newBackend(1)
	if err := onnxgo.NewModel(b).UnmarshalBinary(data); err != nil {
		return nil, err
	}
	for it := b.Nodes(); it.Next(); {
		if v := it.Node().(*value); v.name == network.ReconstructionName {
			return v.node, nil
		}
	}
	return nil, errors.New("no output")
}

func TestBackend_ReadsBackboneAsBuilt(t *testing.T) {
	got, err := readBackbone(t, backboneFile(t))
	if err != nil {
		t.Fatal(err)
	}
	_, want, _, err := network.Features(1, 32, backbone.Lite0(), []int{lastBlock})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := expression(got), expression(want[0]); a != b {
		t.Errorf("got\n%swant\n%s", a, b)
	}
}

func TestBackend_RejectsModifiedBackbone(t *testing.T) {
	depthwise := func(t *testing.T, m *onnx.ModelProto) *onnx.NodeProto {
		for _, n := range m.GetGraph().GetNode() {
			for _, a := range n.GetAttribute() {
				if a.GetName() == "group" {
					return n
				}
			}
		}
		t.Fatal("there is no depthwise convolution")
		return nil
	}
	for _, c := range []struct {
		name string
		edit func(t *testing.T, m *onnx.ModelProto)
		text string
	}{
		{"fewer groups", func(t *testing.T, m *onnx.ModelProto) {
			attribute(t, depthwise(t, m), "group").I = proto.Int64(8)
		}, "group"},
		{"another stride", func(t *testing.T, m *onnx.ModelProto) {
			attribute(t, depthwise(t, m), "strides").Ints = []int64{3, 3}
		}, "strides"},
		{"padding at the top instead of the bottom", func(t *testing.T, m *onnx.ModelProto) {
			attribute(t, node(t, m, "Conv"), "pads").Ints = []int64{1, 1, 0, 0}
		}, "pads"},
		{"limits in another order", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "Clip")
			n.Input[1], n.Input[2] = n.Input[2], n.Input[1]
		}, "limits"},
		{"missing limit", func(t *testing.T, m *onnx.ModelProto) {
			n := node(t, m, "Clip")
			n.Input = n.Input[:2]
		}, "limits"},
		{"another mean", func(t *testing.T, m *onnx.ModelProto) {
			node(t, m, "Sub").Input[1] = node(t, m, "Div").Input[1]
		}, "constant"},
	} {
		m := backboneFile(t)
		c.edit(t, m)
		if _, err := readBackbone(t, m); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
