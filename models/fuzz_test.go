package models

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/deepmed/anomaly/internal/hostile"
	"github.com/deepmed/anomaly/internal/onnx"
)

// largestSeed bounds the seeds, in bytes: mutating a large file finds little.
const largestSeed = 8 << 10

var hostileFiles = sync.OnceValue(func() []hostile.File { return hostile.Models("/nowhere/canary") })

// seeds returns the hostile files of a class that are at most largestSeed bytes long.
func seeds(class hostile.Class) []hostile.File {
	return slices.DeleteFunc(slices.Clone(hostileFiles()), func(f hostile.File) bool {
		return f.Class != class || len(f.Data) > largestSeed
	})
}

// fuzzLimits keep each fuzz run short.
var fuzzLimits = Limits{MaxBytes: 1 << 20, MaxParameters: 1 << 16, MaxUnpacked: 1 << 20}

// fuzzed reads a file and returns the model, nil on an error. It fails the test on an
// error without a sentinel, an overlong error and an incomplete model.
func fuzzed(t *testing.T, data []byte) *Model {
	t.Helper()
	m, err := Read(data, fuzzLimits)
	switch {
	case err != nil && (!sentinel(err) || m != nil):
		t.Errorf("an error without a sentinel: %v", err)
	case err != nil && len(err.Error()) > 2000:
		t.Errorf("an error of %d characters", len(err.Error()))
	case err == nil && (m.Metadata.Validate() != nil || len(m.Weights) != len(m.Architecture.Parameters()) || m.ImageSize%m.Architecture.Stride() != 0):
		t.Errorf("an incomplete model: %+v", m)
	}
	if err != nil {
		return nil
	}
	for i, p := range m.Architecture.Parameters() {
		if w := m.Weights[i]; w.Name != p.Name || !slices.Equal(w.Shape, p.Shape) || len(w.Data) != p.Size() {
			t.Errorf("%s is %s of %v with %d elements", p.Name, w.Name, w.Shape, len(w.Data))
		}
	}
	return m
}

func FuzzRead(f *testing.F) {
	f.Add(zipOf(tinyEntries(binary.LittleEndian, tinyConfig)...))
	f.Add(zipOf(entry{Name: CheckpointFile, Data: zipOf(tinyEntries(binary.BigEndian, "}")...)}, entry{Name: MetadataFile, Data: []byte(`{"threshold":1}`)}))
	f.Add(tinyONNX(nil))
	for _, file := range seeds(hostile.Zip) {
		f.Add(file.Data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { fuzzed(t, data) })
}

func FuzzUnpickle(f *testing.F) {
	for _, file := range seeds(hostile.Pickle) {
		f.Add(file.Pickle)
	}
	f.Add(tinyEntries(binary.LittleEndian, tinyConfig)[0].Data)
	f.Add(pickleOf(f, golden(f, "protocol4.pt")))
	f.Add(pickleOf(f, golden(f, "protocol1.pt")))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := unpickle(data); err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsafe) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("an error without a sentinel: %v", err)
		}
	})
}

// The uses of FuzzCheckpoint's bytes.
const (
	asFile    = iota // the whole file
	asPickle         // the pickle of an otherwise valid checkpoint
	asStorage        // a storage of an otherwise valid checkpoint
	asBundled        // the checkpoint in a training's zip
	checkpointUses
)

func FuzzCheckpoint(f *testing.F) {
	good := tinyEntries(binary.LittleEndian, tinyConfig)
	f.Add(good[0].Data, uint8(asPickle))
	f.Add(tinyEntries(binary.LittleEndian, dict(str("threshold"), num(1), str("class_names"), "]"+str("a")+"a"))[0].Data, uint8(asPickle))
	f.Add(zipOf(good...), uint8(asFile))
	f.Add(zipOf(good...), uint8(asBundled))
	f.Add(good[1].Data, uint8(asStorage))
	for _, file := range seeds(hostile.Pickle) {
		f.Add(file.Pickle, uint8(asPickle))
	}
	for _, file := range seeds(hostile.Zip) {
		f.Add(file.Data, uint8(asFile))
	}
	f.Fuzz(func(t *testing.T, data []byte, use uint8) {
		switch use % checkpointUses {
		case asPickle:
			data = hostile.Checkpoint(data)
		case asStorage:
			es := slices.Clone(good)
			es[1].Data = data
			data = zipOf(es...)
		case asBundled:
			data = zipOf(entry{Name: CheckpointFile, Data: data})
		}
		fuzzed(t, data)
	})
}

// The uses of FuzzONNX's bytes.
const (
	asModel     = iota // the whole file
	asGraph            // the graph
	asNode             // an additional node
	asAttribute        // an additional attribute of the first convolution
	asTensor           // an additional initializer
	onnxUses
)

func FuzzONNX(f *testing.F) {
	model := &onnx.ModelProto{}
	encode := func(m proto.Message) []byte {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return data
	}
	for _, data := range [][]byte{tinyONNX(nil), hostile.ImageNetwork()} {
		if err := proto.Unmarshal(data, model); err != nil {
			f.Fatal(err)
		}
		f.Add(data, uint8(asModel))
		f.Add(encode(model.Graph), uint8(asGraph))
		for _, n := range model.Graph.Node {
			f.Add(encode(n), uint8(asNode))
			for _, a := range n.Attribute {
				f.Add(encode(a), uint8(asAttribute))
			}
		}
		f.Add(encode(model.Graph.Initializer[0]), uint8(asTensor))
	}
	for _, file := range seeds(hostile.ONNX) {
		f.Add(file.Data, uint8(asModel))
	}
	// Convolutions of the anomaly score, and tensors of reference statistics.
	for _, kernel := range []string{"backbone.stem.weight", "normality.patch.10.whitening", "normality.head.0.1.weight", "filters.grey"} {
		f.Add(encode(&onnx.NodeProto{OpType: proto.String("Conv"), Input: []string{"image", kernel}, Output: []string{"seen"}}), uint8(asNode))
		f.Add(encode(&onnx.TensorProto{Name: proto.String(kernel), DataType: proto.Int32(1), Dims: []int64{1, 3, 1, 1}, RawData: make([]byte, 12)}), uint8(asTensor))
	}
	f.Fuzz(func(t *testing.T, data []byte, use uint8) {
		switch use % onnxUses {
		case asGraph:
			data = append(hostile.Field(modelOpset, []byte("\x10\x11")), hostile.Field(modelGraph, data)...)
		case asNode:
			data = tinyONNX(func(m *onnx.ModelProto) { hostile.Append(m.Graph, hostile.Field(graphNode, data)) })
		case asAttribute:
			data = tinyONNX(func(m *onnx.ModelProto) { hostile.Append(m.Graph.Node[0], hostile.Field(nodeAttribute, data)) })
		case asTensor:
			data = tinyONNX(func(m *onnx.ModelProto) { hostile.Append(m.Graph, hostile.Field(graphInitializer, data)) })
		}
		if isZip(data) || isBarePickle(data) {
			return
		}
		if m := fuzzed(t, data); m != nil {
			for _, difference := range misread(data, m) {
				t.Error(difference)
			}
		}
	})
}

// misread compares a model with the protobuf library's decoding of the same file and
// returns the differences. It returns none for a file that the library cannot decode,
// because Read ignores some fields that may be broken.
func misread(data []byte, m *Model) (wrong []string) {
	var p onnx.ModelProto
	if err := proto.Unmarshal(data, &p); err != nil {
		return nil
	}
	defined := map[string]bool{"": true}
	for _, t := range p.Graph.GetInitializer() {
		defined[t.GetName()] = true
	}
	for _, v := range p.Graph.GetInput() {
		defined[v.GetName()] = true
	}
	convolutions := 0
	for _, n := range p.Graph.GetNode() {
		for _, in := range n.Input {
			if !defined[in] {
				wrong = append(wrong, fmt.Sprintf("a %s uses %q before its definition", n.GetOpType(), in))
			}
		}
		for _, out := range n.Output {
			defined[out] = true
		}
		if n.GetDomain() != "" && n.GetDomain() != "ai.onnx" {
			wrong = append(wrong, "an operator of "+n.GetDomain())
		}
		if n.GetOpType() != "Conv" && n.GetOpType() != "ConvTranspose" {
			continue
		}
		if len(n.Input) > 1 && slices.ContainsFunc(auxiliaryPrefixes, func(p string) bool { return strings.HasPrefix(n.Input[1], p) }) {
			continue // a convolution of the anomaly score
		}
		part, layer := "encoder", convolutions
		if convolutions >= m.Architecture.Layers() {
			part, layer = "decoder", convolutions-m.Architecture.Layers()
		}
		if len(n.Input) != 3 || n.Input[1] != fmt.Sprintf("%s.%d.weight", part, 2*layer) {
			wrong = append(wrong, fmt.Sprintf("convolution %d has the inputs %q", convolutions, n.Input))
		}
		for _, a := range n.Attribute {
			if a.GetName() == "strides" && !slices.Equal(a.Ints, []int64{2, 2}) || a.GetName() == "group" && a.GetI() != 1 {
				wrong = append(wrong, fmt.Sprintf("%s of convolution %d is %v", a.GetName(), convolutions, a))
			}
		}
		convolutions++
	}
	if want := 2 * m.Architecture.Layers(); convolutions != want {
		wrong = append(wrong, fmt.Sprintf("%d convolutions, expected %d", convolutions, want))
	}
	return wrong
}

func FuzzParseMetadata(f *testing.F) {
	f.Add([]byte(`{"threshold":0.02}`))
	f.Add([]byte(`{"model_type":"autoencoder","image_size":256,"threshold":1e-3,"class_names":["a"],"decision":{"measure":"mse","threshold":1}}`))
	f.Add([]byte(`{"threshold":1,"architecture":{"channels":[3,1]},"training":{"skipped_files":[{}]},"files":{"autoencoder.pt":"00"}}`))
	f.Add([]byte(`{"threshold":0.5,"THRESHOLD":-1,"decision":null,"preprocessing":{"scale":1e400}}`))
	f.Add([]byte(`{"threshold":1,"detectability":{"threshold":1,"normal_images":1,"images_per_cell":1,"diameters":[4],"contrasts":[8],"found":[[0.5]],"blur":[]}}`))
	f.Add(fmt.Appendf(nil, `{"threshold":1,"decision":{"measure":"patch_mahalanobis","threshold":1,"backbone":{"name":%q,"sha256":%q}}}`,
		EmbeddedBackbone().Name, EmbeddedBackbone().SHA256))
	f.Add([]byte(`{"threshold":1,"decision":{"measure":"patch_mahalanobis","threshold":1,"backbone":{"name":"x","sha256":""}}}`))
	f.Add(bytes.Repeat([]byte("["), 100))
	f.Add([]byte("\ufeff{\"threshold\":0.02}"))
	f.Add(utf16Of(`{"threshold":0.02,"class_names":["ß"]}`, binary.BigEndian))
	f.Add(utf16Of(`{"threshold":0.02}`, binary.LittleEndian)[:21])
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseMetadata(data)
		switch {
		case err != nil && !errors.Is(err, ErrMetadata):
			t.Errorf("an error without a sentinel: %v", err)
		case err != nil && len(err.Error()) > 500:
			t.Errorf("an error of %d characters", len(err.Error()))
		case err == nil && m.Validate() != nil:
			t.Errorf("invalid metadata was accepted: %+v", m)
		}
	})
}
