package exporter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
	"google.golang.org/protobuf/proto"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// feed gives every input of a step a value that both engines get.
func feed(r *rand.Rand, shape []int, low, high float64) []float32 {
	n := 1
	for _, d := range shape {
		n *= d
	}
	data := make([]float32, n)
	for i := range data {
		data[i] = float32(low + (high-low)*r.Float64())
	}
	return data
}

// onGorgonia computes nodes on Gorgonia's own tape machine, reading each
// through a Read node because the machine reuses registers.
func onGorgonia(t *testing.T, g *gorgonia.ExprGraph, inputs map[*gorgonia.Node][]float32, nodes gorgonia.Nodes) [][]float32 {
	t.Helper()
	for n, data := range inputs {
		var v gorgonia.Value
		if n.IsScalar() {
			v = gorgonia.NewF32(data[0])
		} else {
			v = tensor.New(tensor.WithShape(n.Shape()...), tensor.WithBacking(bytesCopy(data)))
		}
		if err := gorgonia.Let(n, v); err != nil {
			t.Fatal(err)
		}
	}
	out := make([]gorgonia.Value, len(nodes))
	for i, n := range nodes {
		gorgonia.Read(n, &out[i])
	}
	m := gorgonia.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	data := make([][]float32, len(out))
	for i, v := range out {
		switch v := v.Data().(type) {
		case []float32:
			data[i] = v
		case float32:
			data[i] = []float32{v}
		}
	}
	return data
}

func bytesCopy(in []float32) []float32 { return append([]float32(nil), in...) }

// onONNXRuntime runs a lowered step.
func onONNXRuntime(t *testing.T, m *StepModel, inputs, outputs map[string][]int, values map[string][]float32) map[string][]float32 {
	t.Helper()
	s, err := orttest.Open(t).NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Kernels: m.Kernels})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	inputs = maps.Clone(inputs)
	inputs[VersionName] = []int{1}
	make := func(names []string, shapes map[string][]int) []*ort.Tensor {
		var ts []*ort.Tensor
		for _, n := range names {
			v, err := ort.NewTensor(shapes[n]...)
			if err != nil {
				t.Fatalf("%s: %v", n, err)
			}
			t.Cleanup(v.Close)
			copy(v.Data(), values[n])
			ts = append(ts, v)
		}
		return ts
	}
	in, out := make(m.Inputs, inputs), make(m.Outputs, outputs)
	if err := s.Run(t.Context(), in, out); err != nil {
		t.Fatal(err)
	}
	result := map[string][]float32{}
	for i, n := range m.Outputs {
		result[n] = out[i].Data()
	}
	return result
}

// relative is the difference of two tensors as a share of the second's norm.
func relative(got, want []float32) float64 {
	difference, norm := 0.0, 0.0
	for i := range want {
		difference += math.Pow(float64(got[i])-float64(want[i]), 2)
		norm += float64(want[i]) * float64(want[i])
	}
	return math.Sqrt(difference / norm)
}

var bothOperators = map[string]Operators{"portable": Portable, "processor": Processor}

func TestStepsGradientsAreThoseOfGorgoniasMachine(t *testing.T) {
	for _, c := range []struct {
		channels []int
		n, h, w  int
	}{
		{[]int{3, 4, 5}, 1, 8, 8},
		{[]int{3, 4, 6, 5}, 3, 16, 24},
		{[]int{3, 8, 12, 16, 20}, 2, 32, 16},
		// Of more channels than a tile has, and numbers of them that it has not.
		{[]int{3, 9, 70}, 3, 16, 8},
		{[]int{3, 8, 12, 16, 20}, 2, 32, 64},
		{[]int{3, 8, 12, 16, 20}, 1, 96, 32},
	} {
		arch := models.Architecture{Channels: c.channels}
		t.Run(fmt.Sprintf("%s at %d×%d×%d", arch, c.n, c.h, c.w), func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, uint64(c.h)))
			f, err := network.Autoencoder(arch, c.n, c.h, c.w)
			if err != nil {
				t.Fatal(err)
			}
			g, err := network.Differentiate(f)
			if err != nil {
				t.Fatal(err)
			}
			image := []int{c.n, 3, c.h, c.w}
			shapes := map[string][]int{network.ImageName: image, network.WeightName: {1}}
			outputs := map[string][]int{"loss": {1}}
			values := map[string][]float32{network.ImageName: feed(r, image, 0, 1), network.WeightName: {0.375}}
			nodes := map[*gorgonia.Node][]float32{g.Image: values[network.ImageName], g.Weight: {0.375}}
			for i, p := range arch.Parameters() {
				shapes[p.Name], outputs[network.GradientName(p.Name, 0)] = p.Shape, p.Shape
				values[p.Name] = feed(r, p.Shape, -0.4, 0.4)
				nodes[g.Parameters[i]] = values[p.Name]
			}
			want := onGorgonia(t, g.Graph, nodes, append(gorgonia.Nodes{g.Loss}, g.Gradients...))
			for name, with := range bothOperators {
				m, err := GradientModel(arch, c.n, c.h, c.w, with)
				if err != nil {
					t.Fatal(err)
				}
				got := onONNXRuntime(t, m, shapes, outputs, values)
				for i, output := range m.Outputs {
					if d := relative(got[output], want[i]); d > 1e-4 || math.IsNaN(d) {
						t.Errorf("%s: %s differs by %.2g", name, output, d)
					}
				}
			}
		})
	}
}

func TestAdamIsThatOfGorgoniasMachine(t *testing.T) {
	// Of fewer numbers than a vector has, of some more, and of more than a thread takes.
	arch := models.Architecture{Channels: []int{3, 2, 37, 130}}
	const parts = 3
	r := rand.New(rand.NewPCG(3, 3))
	u, err := network.Adam(arch.Parameters(), parts)
	if err != nil {
		t.Fatal(err)
	}
	shapes := map[string][]int{network.StepSizeName: {1}, network.CorrectionName: {1}}
	values := map[string][]float32{network.StepSizeName: {0.01}, network.CorrectionName: {3}}
	nodes := map[*gorgonia.Node][]float32{u.StepSize: {0.01}, u.Correction: {3}}
	outputs := map[string][]int{}
	set := func(n *gorgonia.Node, name string, shape []int, low, high float64) {
		shapes[name], values[name] = shape, feed(r, shape, low, high)
		nodes[n] = values[name]
	}
	for i, p := range arch.Parameters() {
		set(u.Parameters[i], p.Name, p.Shape, -1, 1)
		set(u.First[i], p.Name+".m", p.Shape, -1, 1)
		set(u.Second[i], p.Name+".v", p.Shape, 0, 1)
		for part := range parts {
			set(u.Gradients[part][i], network.GradientName(p.Name, part), p.Shape, -1, 1)
		}
		for _, suffix := range []string{"", ".m", ".v"} {
			outputs["next."+p.Name+suffix] = p.Shape
		}
	}
	all := append(append(append(gorgonia.Nodes{}, u.NewParameters...), u.NewFirst...), u.NewSecond...)
	want := onGorgonia(t, u.Graph, nodes, all)
	for name, with := range bothOperators {
		m, err := UpdateModel(arch.Parameters(), parts, with)
		if err != nil {
			t.Fatal(err)
		}
		got := onONNXRuntime(t, m, shapes, outputs, values)
		for i, output := range m.Outputs {
			if d := relative(got[output], want[i]); d > 1e-5 || math.IsNaN(d) {
				t.Errorf("%s: %s differs by %.2g", name, output, d)
			}
		}
	}
}

// sample is a small model with weights that are not all alike.
func sample() *models.Model {
	arch := models.Architecture{Channels: []int{3, 4, 6}}
	r := rand.New(rand.NewPCG(5, 5))
	m := &models.Model{Architecture: arch, ImageSize: 16, Metadata: models.Metadata{
		ModelType: models.ModelType, ImageSize: 16, Threshold: 0.125, MeanError: 0.1, StdError: 0.0125,
		TrainingLosses: []float64{0.3, 0.2}, ClassNames: []string{"gut", "schlecht"}, FormatVersion: models.FormatVersion,
		Architecture: &arch, Preprocessing: models.StandardPreprocessing(),
		Training: &models.TrainingSummary{Level: 1, Epochs: 2, BatchSize: 16, LearningRate: 1e-3, Images: 7},
	}}
	for _, p := range arch.Parameters() {
		m.Weights = append(m.Weights, models.Tensor{Name: p.Name, Shape: p.Shape, Data: feed(r, p.Shape, -0.5, 0.5)})
	}
	return m
}

// parsed lowers a model and reads the file as anybody's program would.
func parsed(t *testing.T, lower func(*models.Model) ([]byte, error), m *models.Model) *onnx.ModelProto {
	t.Helper()
	b, err := lower(m)
	if err != nil {
		t.Fatal(err)
	}
	p := new(onnx.ModelProto)
	if err := proto.Unmarshal(b, p); err != nil {
		t.Fatal(err)
	}
	return p
}

// described writes inputs or outputs as "name type [dimensions]".
func described(t *testing.T, vs []*onnx.ValueInfoProto) string {
	t.Helper()
	var out []string
	for _, v := range vs {
		var dims []string
		for _, d := range v.GetType().GetTensorType().GetShape().GetDim() {
			if d.GetDimParam() != "" {
				dims = append(dims, d.GetDimParam())
			} else {
				dims = append(dims, fmt.Sprint(d.GetDimValue()))
			}
		}
		kind := onnx.TensorProto_DataType(v.GetType().GetTensorType().GetElemType())
		out = append(out, fmt.Sprintf("%s %s %v", v.GetName(), kind, dims))
		if v.GetDocString() == "" {
			t.Errorf("%s is not explained", v.GetName())
		}
	}
	return strings.Join(out, ", ")
}

func TestExportedModelsAreStandardONNXAndCarryTheDecision(t *testing.T) {
	for name, c := range map[string]struct {
		lower           func(*models.Model) ([]byte, error)
		opset           int64
		inputs, outputs string
	}{
		"tensor": {InferenceModel, Opset, "image FLOAT [N 3 16 16]", "reconstruction FLOAT [N 3 16 16], reconstruction_error FLOAT [N]"},
		"image": {ImageModel, 18, "image UINT8 [height width 3]",
			"reconstruction_error FLOAT [1], is_anomaly BOOL [1], anomaly_map FLOAT [16 16]"},
	} {
		t.Run(name, func(t *testing.T) {
			m := parsed(t, c.lower, sample())
			for _, n := range m.GetGraph().GetNode() {
				if n.GetDomain() != "" {
					t.Errorf("%s is of domain %q", n.GetOpType(), n.GetDomain())
				}
			}
			if len(m.GetOpsetImport()) != 1 || m.GetOpsetImport()[0].GetVersion() != c.opset {
				t.Errorf("operator sets %v", m.GetOpsetImport())
			}
			if got := described(t, m.GetGraph().GetInput()); got != c.inputs {
				t.Errorf("inputs %s", got)
			}
			if got := described(t, m.GetGraph().GetOutput()); got != c.outputs {
				t.Errorf("outputs %s", got)
			}
			props := map[string]string{}
			for _, p := range m.GetMetadataProps() {
				props[p.GetKey()] = p.GetValue()
			}
			for key, want := range map[string]string{
				"model_type": "autoencoder", "format_version": "1", "image_size": "16", "threshold": "0.125", "class_names": `["gut","schlecht"]`,
				"preprocessing": `{"color_mode":"RGB","resize":"pillow-bilinear","scale":0.00392156862745098,"layout":"NCHW"}`,
				"training":      `{"level":1,"epochs":2,"batch_size":16,"learning_rate":0.001,"seed":0,"images":7,"skipped":0}`,
			} {
				if props[key] != want {
					t.Errorf("%s is %s, want %s", key, props[key], want)
				}
			}
			var whole models.Metadata
			if err := json.Unmarshal([]byte(props["metadata_json"]), &whole); err != nil || !reflect.DeepEqual(whole, sample().Metadata) {
				t.Errorf("metadata_json %v: %+v", err, whole)
			}
		})
	}
}

func TestInferenceModelTakesAnyNumberOfImages(t *testing.T) {
	m := sample()
	b, err := InferenceModel(m)
	if err != nil {
		t.Fatal(err)
	}
	s, err := orttest.Open(t).NewSession(b, []string{"image"}, []string{"reconstruction", "reconstruction_error"}, ort.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := rand.New(rand.NewPCG(9, 9))
	pixels := feed(r, []int{3, 3, 16, 16}, 0, 1)
	alone := make([]float32, 3)
	for n := 1; n <= 3; n++ {
		image, _ := ort.NewTensor(n, 3, 16, 16)
		rebuilt, _ := ort.NewTensor(n, 3, 16, 16)
		errs, _ := ort.NewTensor(n)
		copy(image.Data(), pixels)
		if err := s.Run(t.Context(), []*ort.Tensor{image}, []*ort.Tensor{rebuilt, errs}); err != nil {
			t.Fatal(err)
		}
		for i, e := range errs.Data() {
			sum := 0.0
			for j := range 768 {
				d := float64(rebuilt.Data()[i*768+j]) - float64(pixels[i*768+j])
				sum += d * d
			}
			if want := sum / 768; math.Abs(float64(e)-want) > 1e-6*want {
				t.Errorf("image %d of %d: error %v, from the reconstruction %v", i, n, e, want)
			}
			if n == i+1 {
				alone[i] = e
			} else if math.Abs(float64(e-alone[i])) > 1e-6 {
				t.Errorf("image %d of %d: error %v, otherwise %v", i, n, e, alone[i])
			}
		}
		image.Close()
		rebuilt.Close()
		errs.Close()
	}
}

// tanh stands for any operator that nobody wrote a rule for.
func TestOperatorWithoutLoweringIsNamed(t *testing.T) {
	g := gorgonia.NewGraph()
	x := gorgonia.NewTensor(g, tensor.Float32, 2, gorgonia.WithShape(2, 2), gorgonia.WithName("x"))
	y := gorgonia.Must(gorgonia.Tanh(x))
	l := newLowering("test", true)
	l.source(x, "x")
	_, err := l.lower(y)
	if !errors.Is(err, ErrNoLowering) || !strings.Contains(err.Error(), "tanh") {
		t.Errorf("the error is %v", err)
	}
}

// What does not know the layout of package kernels must not take it for ONNX's own.
func TestOperatorsThatDoNotKnowChannelsLastAreGivenChannelsFirst(t *testing.T) {
	g := gorgonia.NewGraph()
	x := gorgonia.NewTensor(g, tensor.Float32, 4, gorgonia.WithShape(1, 3, 8, 8), gorgonia.WithName("x"))
	plain := gorgonia.NewTensor(g, tensor.Float32, 4, gorgonia.WithShape(1, 3, 8, 8), gorgonia.WithName("plain"))
	for name, c := range map[string]struct {
		y          *gorgonia.Node
		transposed int
	}{
		"sum of rows":     {gorgonia.Must(gorgonia.Sum(x, 3)), 1},
		"another shape":   {gorgonia.Must(gorgonia.Reshape(x, tensor.Shape{3, 64})), 1},
		"both layouts":    {gorgonia.Must(gorgonia.Add(x, plain)), 1},
		"sum of all":      {gorgonia.Must(gorgonia.Sum(x)), 0},
		"one layout":      {gorgonia.Must(gorgonia.Add(x, x)), 0},
		"a single number": {gorgonia.Must(gorgonia.Mul(x, gorgonia.NewConstant(float32(2)))), 0},
	} {
		l := newLowering("test", true)
		l.processor = true
		l.done[x] = l.channelsLast(l.source(x, "x"))
		l.source(plain, "plain")
		v, err := l.lower(c.y)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		transposed := 0
		for _, n := range l.proto.GetNode() {
			if n.GetOpType() == "Transpose" {
				transposed++
			}
		}
		if transposed != c.transposed || v.last != (c.transposed == 0 && len(v.shape) == 4) {
			t.Errorf("%s: %d operands were transposed, expected %d; channels last %v", name, transposed, c.transposed, v.last)
		}
	}
}

func TestMicrosoftsOperatorsStayOutOfStandardGraphs(t *testing.T) {
	if _, err := newGraph("test", false).microsoftOp("FusedMatMul", nil, nil); err == nil {
		t.Error("FusedMatMul is accepted")
	}
}

func TestSameModelGivesTheSameBytes(t *testing.T) {
	var first []byte
	for range 3 {
		var b bytes.Buffer
		if err := WriteBundle(&b, sample()); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b.Bytes()
		} else if !bytes.Equal(first, b.Bytes()) {
			t.Fatal("two bundles of one model differ")
		}
	}
}

// What was written is what is read, from each of the three files.
func TestBundleReadsBackAsTheModel(t *testing.T) {
	m := sample()
	var b bytes.Buffer
	if err := WriteBundle(&b, m); err != nil {
		t.Fatal(err)
	}
	onnxFile, err := InferenceModel(m)
	if err != nil {
		t.Fatal(err)
	}
	var checkpoint bytes.Buffer
	if err := WriteCheckpoint(&checkpoint, m); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"zip": b.Bytes(), "onnx": onnxFile, "pt": checkpoint.Bytes()} {
		got, err := models.Read(data, models.DefaultLimits())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if string(got.Format) != name || got.SHA256 != models.Identity(data) || got.ImageSize != 16 || !got.Architecture.Equal(m.Architecture) {
			t.Errorf("%s: %s of %s at %d", name, got.Format, got.Architecture, got.ImageSize)
		}
		if got.Metadata.Threshold != 0.125 || got.Metadata.MeanError != 0.1 || strings.Join(got.Metadata.ClassNames, " ") != "gut schlecht" || got.Metadata.Training == nil {
			t.Errorf("%s: metadata %+v", name, got.Metadata)
		}
		for i, w := range m.Weights {
			if got.Weights[i].Name != w.Name || relative(got.Weights[i].Data, w.Data) != 0 {
				t.Errorf("%s: %s differs", name, w.Name)
			}
		}
	}
}
