package exporter

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
	"google.golang.org/protobuf/proto"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// randomValues returns uniform random values for a tensor of that shape.
func randomValues(r *rand.Rand, shape []int, low, high float64) []float32 {
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

// runGorgonia returns the values of nodes for those input values, computed on Gorgonia's
// tape machine.
func runGorgonia(t *testing.T, g *gorgonia.ExprGraph, inputs map[*gorgonia.Node][]float32, nodes gorgonia.Nodes) [][]float32 {
	t.Helper()
	for n, data := range inputs {
		var v gorgonia.Value
		if n.IsScalar() {
			v = gorgonia.NewF32(data[0])
		} else {
			v = tensor.New(tensor.WithShape(n.Shape()...), tensor.WithBacking(cloned(data)))
		}
		if err := gorgonia.Let(n, v); err != nil {
			t.Fatal(err)
		}
	}
	return testkit.RunGorgonia(t, g, nodes)
}

func cloned(in []float32) []float32 { return append([]float32(nil), in...) }

// runONNXRuntime runs a model with those shapes and input values and returns its outputs.
func runONNXRuntime(t *testing.T, m *SessionModel, inputs, outputs map[string][]int, values map[string][]float32) map[string][]float32 {
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

// relativeError returns the norm of got − want divided by the norm of want.
func relativeError(got, want []float32) float64 {
	difference, norm := 0.0, 0.0
	for i := range want {
		difference += math.Pow(float64(got[i])-float64(want[i]), 2)
		norm += float64(want[i]) * float64(want[i])
	}
	return math.Sqrt(difference / norm)
}

var bothOperators = map[string]Operators{"portable": Portable, "processor": Processor}

// requireClose compares elements by their difference, relative to max(1, |want|).
func requireClose(t *testing.T, what string, got, want []float32, tolerance float64) {
	t.Helper()
	worst := 0.0
	for i, w := range want {
		d := math.Abs(float64(got[i])-float64(w)) / max(1, math.Abs(float64(w)))
		if !(d <= worst) { // a NaN counts
			worst = d
		}
	}
	if len(got) != len(want) || !(worst <= tolerance) {
		t.Errorf("%s: got %d values, want %d; they differ by %.2g", what, len(got), len(want), worst)
	}
}

// sample returns a small model with random weights.
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
		m.Weights = append(m.Weights, models.Tensor{Name: p.Name, Shape: p.Shape, Data: randomValues(r, p.Shape, -0.5, 0.5)})
	}
	return m
}

// parsed lowers a model and parses the file.
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

// described returns inputs or outputs as "name type [dimensions]". Each must have a
// documentation.
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
			t.Errorf("%s has no documentation", v.GetName())
		}
	}
	return strings.Join(out, ", ")
}
