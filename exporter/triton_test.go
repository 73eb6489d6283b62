package exporter

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/onnx"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// The expected result is that of protobuf's own parser.
func TestTextFormatString_RoundTrips(t *testing.T) {
	all := make([]rune, 0, 0x200)
	for r := range rune(0x200) {
		all = append(all, r)
	}
	for _, text := range []string{"", "plain", `"quoted" and 'so' \ and \n`, "line\nline\r\t\x00\x0123\x7f", "Riß 息肉 \u2028 \U0001F600", `\", } name: "x`, string(all)} {
		var e onnx.StringStringEntryProto
		if err := prototext.Unmarshal([]byte("key: "+textFormatString(text)), &e); err != nil || e.GetKey() != text {
			t.Errorf("%q is parsed as %q, %v", text, e.GetKey(), err)
		}
	}
	if got := textFormatString("a\xffb"); got != "\"a\uFFFDb\"" {
		t.Errorf("invalid UTF-8 becomes %q", got)
	}
}

func TestTritonEntries_AreDeterministic(t *testing.T) {
	first, err := TritonEntries(sample(), "a")
	if err != nil {
		t.Fatal(err)
	}
	again, err := TritonEntries(sample(), "a")
	if err != nil || !reflect.DeepEqual(first, again) {
		t.Errorf("the entries differ, %v", err)
	}
	other, err := TritonEntries(sample(), "b")
	if err != nil || len(first) != 2 || len(other) != 2 {
		t.Fatalf("%d and %d entries, %v", len(first), len(other), err)
	}
	for i, name := range []string{"b", "b_image"} {
		if other[i].Name != name || !bytes.Equal(other[i].Model, first[i].Model) || !bytes.Contains(other[i].Config, []byte("\nname: \""+name+"\"\n")) {
			t.Errorf("entry %d is %s with %s", i, other[i].Name, other[i].Config)
		}
	}
}

func TestTritonEntries_RejectInvalidName(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../a", "a/b", `a\b`, "a\x00", "a\n", "é", strings.Repeat("a", 101)} {
		if entries, err := TritonEntries(sample(), name); !errors.Is(err, ErrTritonName) || entries != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"a", "7", "A.b-c_d", strings.Repeat("a", 100)} {
		if _, err := TritonEntries(sample(), name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestTritonConfig_RejectsUnsupportedTensors(t *testing.T) {
	whole, err := InferenceModel(sample())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		edit func(g *onnx.GraphProto)
		text string
	}{
		{"an output of another type", func(g *onnx.GraphProto) {
			g.Output[1].Type.GetTensorType().ElemType = proto.Int32(int32(onnx.TensorProto_INT64))
		}, "reconstruction_error has the unsupported element type 7"},
		{"an output without a batch", func(g *onnx.GraphProto) {
			g.Output[1].Type.GetTensorType().Shape.Dim = nil
		}, "reconstruction_error of shape [] has no batch"},
		{"an input of one image", func(g *onnx.GraphProto) {
			g.Input[0].Type.GetTensorType().Shape.Dim[0] = &onnx.TensorShapeProto_Dimension{Value: &onnx.TensorShapeProto_Dimension_DimValue{DimValue: 1}}
		}, "image of shape [1 3 16 16] has no batch"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p onnx.ModelProto
			if err := proto.Unmarshal(whole, &p); err != nil {
				t.Fatal(err)
			}
			c.edit(p.Graph)
			file, err := proto.Marshal(&p)
			if err != nil {
				t.Fatal(err)
			}
			if config, err := tritonConfig(sample(), "a", file, tritonBatch); err == nil || config != nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want an error with %q", err, c.text)
			}
		})
	}
}
