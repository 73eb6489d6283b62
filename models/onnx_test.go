package models

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/deepmed/anomaly/internal/onnx"
)

// tinyONNX is an ONNX file of the tiny network, changed before it is encoded.
func tinyONNX(t testing.TB, change func(*onnx.ModelProto)) []byte {
	t.Helper()
	g := &onnx.GraphProto{Name: proto.String("g"), Node: []*onnx.NodeProto{{OpType: proto.String("Conv")}}}
	v := float32(0)
	for _, p := range tiny.Parameters() {
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
	m := &onnx.ModelProto{IrVersion: proto.Int64(9), Graph: g}
	if change != nil {
		change(m)
	}
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func prop(key, value string) *onnx.StringStringEntryProto {
	return &onnx.StringStringEntryProto{Key: &key, Value: &value}
}

func TestReadTakesONNXWeightsInEitherField(t *testing.T) {
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
		m, err := Read(tinyONNX(t, change), Limits{})
		if err != nil {
			t.Fatal(name, err)
		}
		if got := fmt.Sprint(m.Weights[3].Data); got != "[55 56 57]" || m.Format != FormatONNX || m.ImageSize != DefaultImageSize {
			t.Errorf("%s: the last bias is %v, the image size %d", name, got, m.ImageSize)
		}
	}
}

func TestReadTakesWhatTheONNXMetadataSays(t *testing.T) {
	for name, c := range map[string]struct {
		props []*onnx.StringStringEntryProto
		want  Metadata
	}{
		"nothing": {nil, Metadata{Threshold: DefaultThreshold, ImageSize: 256}},
		"single keys": {
			[]*onnx.StringStringEntryProto{prop("threshold", "0.5"), prop("class_names", `["a","b"]`), prop("image_size", "64"), prop("other", "x")},
			Metadata{Threshold: 0.5, ImageSize: 64, ClassNames: []string{"a", "b"}},
		},
		"the whole, which wins": {
			[]*onnx.StringStringEntryProto{prop("threshold", "0.5"), prop("image_size", "64"), prop("metadata_json", `{"threshold":0.25,"image_size":32}`)},
			Metadata{Threshold: 0.25, ImageSize: 32},
		},
	} {
		m, err := Read(tinyONNX(t, func(m *onnx.ModelProto) { m.MetadataProps = c.props }), Limits{})
		if err != nil {
			t.Fatal(name, err)
		}
		if c.want.ModelType = ModelType; !reflect.DeepEqual(m.Metadata, c.want) {
			t.Errorf("%s: %+v, want %+v", name, m.Metadata, c.want)
		}
	}
}

func TestReadOfAHostileONNXFileFailsWithinBounds(t *testing.T) {
	first := func(change func(*onnx.TensorProto)) func(*onnx.ModelProto) {
		return func(m *onnx.ModelProto) { change(m.Graph.Initializer[0]) }
	}
	props := func(ps ...*onnx.StringStringEntryProto) func(*onnx.ModelProto) {
		return func(m *onnx.ModelProto) { m.MetadataProps = ps }
	}
	for what, c := range map[string]struct {
		change func(*onnx.ModelProto)
		want   error
	}{
		"no graph":             {func(m *onnx.ModelProto) { m.Graph = nil }, ErrFormat},
		"an empty graph":       {func(m *onnx.ModelProto) { m.Graph = &onnx.GraphProto{} }, ErrArchitecture},
		"another network":      {first(func(t *onnx.TensorProto) { t.Name = proto.String("encoder.1.weight") }), ErrArchitecture},
		"a foreign activation": {func(m *onnx.ModelProto) { m.Graph.Node[0].OpType = proto.String("LeakyRelu") }, ErrArchitecture},
		"external data": {first(func(t *onnx.TensorProto) {
			t.ExternalData = []*onnx.StringStringEntryProto{prop("location", "/etc/passwd")}
		}), ErrFormat},
		"external without place": {first(func(t *onnx.TensorProto) { t.DataLocation = onnx.TensorProto_EXTERNAL.Enum() }), ErrFormat},
		"a name twice":           {func(m *onnx.ModelProto) { m.Graph.Initializer = append(m.Graph.Initializer, m.Graph.Initializer[0]) }, ErrFormat},
		"float16":                {first(func(t *onnx.TensorProto) { t.DataType = proto.Int32(10) }), ErrFormat},
		"whole numbers":          {first(func(t *onnx.TensorProto) { t.Int64Data = make([]int64, 27) }), ErrArchitecture},
		"dims of 2 GB":           {first(func(t *onnx.TensorProto) { t.Dims = []int64{1 << 31, 1, 1, 1} }), ErrArchitecture},
		"dims that overflow":     {first(func(t *onnx.TensorProto) { t.Dims = []int64{1 << 62, 4, 3, 3} }), ErrArchitecture},
		"negative dims":          {first(func(t *onnx.TensorProto) { t.Dims = []int64{-1, -3, 3, 3} }), ErrArchitecture},
		"a thousand dims":        {first(func(t *onnx.TensorProto) { t.Dims = make([]int64, 1000) }), ErrArchitecture},
		"wide dims, no data":     {first(func(t *onnx.TensorProto) { t.Dims = []int64{2048, 3, 3, 3} }), ErrArchitecture},
		"short data":             {first(func(t *onnx.TensorProto) { t.RawData = t.RawData[:100] }), ErrFormat},
		"data twice":             {first(func(t *onnx.TensorProto) { t.FloatData = make([]float32, 27) }), ErrFormat},
		"not finite":             {first(func(t *onnx.TensorProto) { t.RawData[3], t.RawData[2] = 0x7f, 0xff }), ErrFormat},
		"a key twice":            {props(prop("a", "1"), prop("a", "1")), ErrFormat},
		"threshold in words":     {props(prop("threshold", "high")), ErrMetadata},
		"threshold NaN":          {props(prop("threshold", "NaN")), ErrMetadata},
		"image size in words":    {props(prop("image_size", "big")), ErrMetadata},
		"image size negative":    {props(prop("image_size", "-2")), ErrMetadata},
		"class names unquoted":   {props(prop("class_names", "normal")), ErrMetadata},
		"metadata without sense": {props(prop("metadata_json", "null")), ErrMetadata},
	} {
		t.Run(what, func(t *testing.T) {
			data := tinyONNX(t, c.change)
			bounded(t, 1<<20, func() {
				if _, err := Read(data, Limits{}); !errors.Is(err, c.want) {
					t.Errorf("%v, want %v", err, c.want)
				}
			})
		})
	}
}

// Two bytes of an empty message take hundreds in memory once decoded, so no
// field that may be repeated is decoded before it has been counted.
func TestReadOfAnONNXFileOfEmptyMessagesAllocatesLittle(t *testing.T) {
	repeated := func(field protowire.Number) []byte {
		return []byte(strings.Repeat(string(protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), nil)), 1<<20))
	}
	graph := func(b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, modelGraph, protowire.BytesType), b)
	}
	named := protowire.AppendString(protowire.AppendTag(nil, tensorName, protowire.BytesType), "encoder.0.weight")
	tensor := func(b []byte) []byte {
		return graph(protowire.AppendBytes(protowire.AppendTag(nil, graphInitializer, protowire.BytesType), append(named, b...)))
	}
	for what, data := range map[string][]byte{
		"nodes": graph(repeated(graphNode)), "initializers": graph(repeated(graphInitializer)), "inputs": graph(repeated(graphInput)),
		"values": graph(repeated(13)), "metadata": append(graph(nil), repeated(modelMetadata)...), "opsets": append(graph(nil), repeated(8)...),
		"external data": tensor(repeated(tensorExternal)), "dims": tensor(repeated(tensorDims)), "integers": tensor(repeated(tensorInt64Data)),
		"graphs": repeated(modelGraph), "groups": []byte(strings.Repeat("\x0b", 1<<20)),
	} {
		t.Run(what, func(t *testing.T) {
			bounded(t, 1<<20, func() {
				if _, err := Read(data, Limits{}); !sentinel(err) {
					t.Error(err)
				}
			})
		})
	}
}
