package exporter

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/models"
	"google.golang.org/protobuf/proto"
)

// gaborModel returns a small model with Gabor heads.
func gaborModel() *models.Model {
	m := sample()
	m.ImageSize, m.Metadata.ImageSize = 32, 32
	return addGaborHeads(m, rand.New(rand.NewPCG(8, 9)))
}

func TestGaborModel_RoundTripsThroughEveryFormat(t *testing.T) {
	without := sample()
	without.ImageSize, without.Metadata.ImageSize = 32, 32
	for name, m := range map[string]*models.Model{"with heads": gaborModel(), "without heads": addGaborStatistics(without, rand.New(rand.NewPCG(8, 9)))} {
		t.Run(name, func(t *testing.T) { checkRoundTrip(t, m) })
	}
}

// checkRoundTrip writes a model in every format and checks that models.Read returns its
// decision and reference statistics.
func checkRoundTrip(t *testing.T, m *models.Model) {
	t.Helper()
	var checkpoint, bundle bytes.Buffer
	if err := errors.Join(WriteCheckpoint(&checkpoint, m), WriteBundle(&bundle, m)); err != nil {
		t.Fatal(err)
	}
	inference, err := InferenceModel(m)
	if err != nil {
		t.Fatal(err)
	}
	image, err := ImageModel(m)
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string][]byte{"pt": checkpoint.Bytes(), "zip": bundle.Bytes(), "onnx": inference, "image onnx": image} {
		got, err := models.Read(file, models.Limits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(got.Metadata.Decision, m.Metadata.Decision) || len(got.Reference) != len(m.Reference) {
			t.Errorf("%s: %+v, %d tensors", name, got.Metadata.Decision, len(got.Reference))
			continue
		}
		for i, want := range m.Reference {
			if g := got.Reference[i]; g.Name != want.Name || !slices.Equal(g.Shape, want.Shape) || !slices.Equal(g.Data, want.Data) {
				t.Errorf("%s: %s is read as %s of shape %v", name, want.Name, g.Name, g.Shape)
			}
		}
	}
}

func TestWriteCheckpoint_RejectsGaborModelThatDoesNotFitDecision(t *testing.T) {
	for name, edit := range map[string]func(m *models.Model){
		"no tensors":                  func(m *models.Model) { m.Reference = nil },
		"missing tensor of a head":    func(m *models.Model) { m.Reference = m.Reference[:len(m.Reference)-1] },
		"missing tensor":              func(m *models.Model) { m.Reference = m.Reference[1:] },
		"another shape":               func(m *models.Model) { m.Reference[0].Shape = []int{1} },
		"not finite":                  func(m *models.Model) { m.Reference[0].Data[3] = float32(math.NaN()) },
		"tensors, and decides by mse": func(m *models.Model) { m.Metadata.Decision = nil },
	} {
		m := gaborModel()
		edit(m)
		var b bytes.Buffer
		if err := WriteCheckpoint(&b, m); !errors.Is(err, ErrUnwritable) || b.Len() > 0 {
			t.Errorf("%s: %v, %d bytes written", name, err, b.Len())
		}
	}
}

// models.Read must reject a file whose reference statistics do not fit its decision, or
// whose autoencoder's input is a filtered image.
func TestRead_RejectsFileThatDoesNotFitDecision(t *testing.T) {
	gabor, err := InferenceModel(gaborModel())
	if err != nil {
		t.Fatal(err)
	}
	patches := inferenceFile(t, patchModel(32, true))
	initializer := func(g *onnx.GraphProto, name string) *onnx.TensorProto {
		for _, i := range g.Initializer {
			if i.GetName() == name {
				return i
			}
		}
		t.Fatalf("no initializer %s", name)
		return nil
	}
	type rejection struct {
		edit func(g *onnx.GraphProto)
		want error
		text string
	}
	check := func(name string, file []byte, c rejection) {
		var m onnx.ModelProto
		if err := proto.Unmarshal(file, &m); err != nil {
			t.Fatal(err)
		}
		c.edit(m.Graph)
		data, err := proto.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = models.Read(data, models.Limits{}); err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]rejection{
		"a tensor of patches is missing": {func(g *onnx.GraphProto) {
			initializer(g, "normality.patch.10.mean").Name = proto.String("other")
		}, models.ErrFormat, "normality.patch.10.mean"},
		"a head's tensor is missing": {func(g *onnx.GraphProto) {
			initializer(g, "normality.head.1.2.weight").Name = proto.String("other")
		}, models.ErrFormat, "normality.head.1.2.weight"},
		"directions of another shape": {func(g *onnx.GraphProto) {
			i := initializer(g, "normality.patch.10.directions")
			i.Dims = []int64{i.Dims[1], i.Dims[0], i.Dims[2]}
		}, models.ErrArchitecture, "shape"},
		"weights that are not finite": {func(g *onnx.GraphProto) {
			copy(initializer(g, "normality.member.weight").RawData, []byte{0, 0, 0x80, 0x7f})
		}, models.ErrFormat, "finite"},
		"the autoencoder's input is the backbone": {func(g *onnx.GraphProto) {
			i := slices.IndexFunc(g.Node, func(n *onnx.NodeProto) bool {
				return n.GetOpType() == "Conv" && strings.HasPrefix(n.Input[1], "backbone.")
			})
			kernel := g.Node[i]
			kernel.Input[0] = "image"
			g.Node = append([]*onnx.NodeProto{kernel}, slices.Delete(g.Node, i, i+1)...)
			first := slices.IndexFunc(g.Node, func(n *onnx.NodeProto) bool { return len(n.Input) > 1 && n.Input[1] == "encoder.0.weight" })
			g.Node[first].Input[0] = kernel.Output[0]
		}, models.ErrArchitecture, "fixed filter"},
	} {
		check(name, patches, c)
	}
	for name, c := range map[string]rejection{
		"a tensor is missing": {func(g *onnx.GraphProto) { initializer(g, "normality.8.mean").Name = proto.String("other") }, models.ErrFormat, "normality.8.mean"},
		"a Gabor head's tensor is missing": {func(g *onnx.GraphProto) {
			initializer(g, "normality.marker.1.2.weight").Name = proto.String("other")
		}, models.ErrFormat, "normality.marker.1.2.weight"},
		"a Gabor head of another shape": {func(g *onnx.GraphProto) {
			initializer(g, "normality.marker.0.1.bias").Dims = []int64{4, 8}
		}, models.ErrArchitecture, "shape"},
		"another shape": {func(g *onnx.GraphProto) {
			i := initializer(g, "normality.8.mean")
			i.Dims = []int64{i.Dims[0] * i.Dims[1], i.Dims[2]}
		}, models.ErrArchitecture, "shape"},
		"a wrong size": {func(g *onnx.GraphProto) { initializer(g, "normality.8.mean").Dims[0]++ }, models.ErrFormat, "numbers"},
		"a size beyond the limits": {func(g *onnx.GraphProto) {
			initializer(g, "normality.8.mean").Dims = []int64{1 << 30, 1 << 30, 1 << 30}
		}, models.ErrArchitecture, "shape"},
		"not finite": {func(g *onnx.GraphProto) {
			copy(initializer(g, "normality.8.mean").RawData, []byte{0, 0, 0xc0, 0x7f})
		}, models.ErrFormat, "finite"},
		"the autoencoder's input is a filtered image": {func(g *onnx.GraphProto) {
			i := slices.IndexFunc(g.Node, func(n *onnx.NodeProto) bool { return n.GetOpType() == "Conv" && n.Input[1] == "filters.colour" })
			filter := g.Node[i]
			g.Node = append([]*onnx.NodeProto{filter}, slices.Delete(g.Node, i, i+1)...)
			first := slices.IndexFunc(g.Node, func(n *onnx.NodeProto) bool { return len(n.Input) > 1 && n.Input[1] == "encoder.0.weight" })
			g.Node[first].Input[0] = filter.Output[0]
		}, models.ErrArchitecture, "fixed filter"},
	} {
		check(name, gabor, c)
	}
}
