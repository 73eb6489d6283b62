package importer

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"gorgonia.org/gorgonia"
)

// random returns n uniform random numbers from low to low+span.
func random(r *rand.Rand, n int, low, span float64) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(low + span*r.Float64())
	}
	return out
}

// untrained returns a model with random weights in the range of PyTorch's initialization, so
// that the activations of deep networks neither vanish nor saturate.
func untrained(side int, channels ...int) *models.Model {
	arch := models.Architecture{Channels: channels}
	r := rand.New(rand.NewPCG(uint64(side), uint64(len(channels))))
	m := &models.Model{Architecture: arch, ImageSize: side, Metadata: models.Metadata{
		ModelType: models.ModelType, ImageSize: side, Threshold: 0.125, ClassNames: []string{"gut", "schlecht"},
	}}
	for _, p := range arch.Parameters() {
		bound := 1 / math.Sqrt(float64(p.Shape[0]))
		m.Weights = append(m.Weights, models.Tensor{Name: p.Name, Shape: p.Shape, Data: random(r, p.Size(), -bound, 2*bound)})
	}
	return m
}

// trained returns the default network, trained on a few tiles.
func trained(t *testing.T) *models.Model {
	t.Helper()
	src, err := dataset.OpenFolder("../../testdata/tiles/test/crack", dataset.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	m, err := trainer.Train(t.Context(), orttest.Open(t), src, trainer.Options{Level: 1, ImageSize: 32})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// exported returns the ONNX file of a model.
func exported(t testing.TB, m *models.Model) []byte {
	t.Helper()
	data, err := exporter.InferenceModel(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// cases returns models of several depths, widths and image sizes, and batch sizes.
func cases(t *testing.T) map[string]struct {
	model *models.Model
	batch int
} {
	t.Helper()
	return map[string]struct {
		model *models.Model
		batch int
	}{
		"one layer of one channel":     {untrained(2, 3, 1), 1},
		"two layers":                   {untrained(8, 3, 4, 8), 3},
		"a bottleneck of 3×3 pixels":   {untrained(24, 3, 5, 3, 7), 2},
		"the default network at 32 px": {untrained(32, models.DefaultArchitecture().Channels...), 1},
		"the default network, trained": {trained(t), 2},
		"the maximum depth":            {untrained(256, 3, 2, 2, 2, 2, 2, 2, 2, 2), 1},
	}
}

// Equal bytes show that every operator, attribute, constant and weight was read correctly.
func TestRead_RoundTripsToSameBytes(t *testing.T) {
	for name, c := range cases(t) {
		t.Run(name, func(t *testing.T) {
			data := exported(t, c.model)
			f, weights, err := Read(data, c.batch)
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range c.model.Weights {
				if got := weights[i]; got.Name != w.Name || !slices.Equal(got.Shape, w.Shape) || !slices.Equal(got.Data, w.Data) {
					t.Errorf("%s was read as %s of shape %v", w.Name, got.Name, got.Shape)
				}
			}
			again := *c.model
			again.Weights = weights
			written, err := exporter.Lower(f, &again)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(written, data) {
				t.Errorf("read %d bytes, wrote %d different bytes", len(data), len(written))
			}
		})
	}
}

// expression returns a text of all nodes that a node depends on.
func expression(n *gorgonia.Node) string {
	var b strings.Builder
	names := map[*gorgonia.Node]int{}
	var visit func(*gorgonia.Node) int
	visit = func(n *gorgonia.Node) int {
		if i, ok := names[n]; ok {
			return i
		}
		var of []int
		for it := n.Graph().From(n.ID()); it.Next(); {
			of = append(of, visit(it.Node().(*gorgonia.Node)))
		}
		names[n] = len(names)
		what := n.Name()
		if n.Op() != nil {
			what = fmt.Sprintf("%T %v", n.Op(), n.Op())
		}
		fmt.Fprintf(&b, "%d: %s of %v, shape %v, %v\n", names[n], what, of, n.Shape(), n.Type())
		return names[n]
	}
	visit(n)
	return b.String()
}

// The graph must have the operators of network.Autoencoder, even where the file has others,
// as for a mean.
func TestRead_ReturnsGraphOfAutoencoder(t *testing.T) {
	for name, c := range cases(t) {
		t.Run(name, func(t *testing.T) {
			got, _, err := Read(exported(t, c.model), c.batch)
			if err != nil {
				t.Fatal(err)
			}
			want, err := network.Autoencoder(c.model.Architecture, c.batch, c.model.ImageSize, c.model.ImageSize)
			if err != nil {
				t.Fatal(err)
			}
			for what, n := range map[string][2]*gorgonia.Node{
				"error": {got.Error, want.Error}, "reconstruction": {got.Reconstruction, want.Reconstruction}, "image": {got.Image, want.Image},
			} {
				if a, b := expression(n[0]), expression(n[1]); a != b {
					t.Errorf("%s: got\n%swant\n%s", what, a, b)
				}
			}
			if all, needed := len(got.Graph.AllNodes()), strings.Count(expression(want.Error), "\n"); all != needed {
				t.Errorf("got %d nodes, want the %d that the error depends on", all, needed)
			}
		})
	}
}

func TestRead_GraphDifferentiatesToSameGradientModel(t *testing.T) {
	for name, c := range cases(t) {
		t.Run(name, func(t *testing.T) {
			f, _, err := Read(exported(t, c.model), c.batch)
			if err != nil {
				t.Fatal(err)
			}
			g, err := network.Differentiate(f)
			if err != nil {
				t.Fatal(err)
			}
			got, err := exporter.LowerGradient(g, exporter.Processor)
			if err != nil {
				t.Fatal(err)
			}
			want, err := exporter.GradientModel(c.model.Architecture, c.batch, c.model.ImageSize, c.model.ImageSize, exporter.Processor)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.ONNX, want.ONNX) || !slices.Equal(got.Inputs, want.Inputs) || !slices.Equal(got.Outputs, want.Outputs) {
				t.Errorf("got a gradient model of %d bytes, want the %d bytes of the trainer's", len(got.ONNX), len(want.ONNX))
			}
		})
	}
}

// tolerance is the maximum relative difference of Gorgonia's machine and ONNX Runtime, which
// sum float32 numbers in different orders.
const tolerance = 1e-5

func TestRead_GraphMatchesONNXRuntime(t *testing.T) {
	engine := orttest.Open(t)
	for name, c := range cases(t) {
		t.Run(name, func(t *testing.T) {
			data, side := exported(t, c.model), c.model.ImageSize
			f, weights, err := Read(data, c.batch)
			if err != nil {
				t.Fatal(err)
			}
			build := func() (*network.Machine, error) { return f.Machine(weights) }
			if c.model.Reference != nil {
				build = func() (*network.Machine, error) { return f.JudgingMachine(weights, c.model.Reference) }
			}
			machine, err := build()
			if err != nil {
				t.Fatal(err)
			}
			defer machine.Close()
			session, err := engine.NewSession(data, []string{network.ImageName}, []string{network.ReconstructionName, network.ErrorName}, ort.SessionOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			var tensors []*ort.Tensor
			for _, shape := range [][]int{{c.batch, 3, side, side}, {c.batch, 3, side, side}, {c.batch}} {
				v, err := ort.NewTensor(shape...)
				if err != nil {
					t.Fatal(err)
				}
				defer v.Close()
				tensors = append(tensors, v)
			}
			r := rand.New(rand.NewPCG(11, 13))
			for range 2 {
				images := random(r, c.batch*3*side*side, 0, 1)
				copy(tensors[0].Data(), images)
				if err := session.Run(t.Context(), tensors[:1], tensors[1:]); err != nil {
					t.Fatal(err)
				}
				rebuilt, _, err := machine.Run(images)
				if err != nil {
					t.Fatal(err)
				}
				errs, err := machine.Scores()
				if err != nil {
					t.Fatal(err)
				}
				for i, want := range tensors[1].Data() {
					if d := math.Abs(float64(rebuilt[i]) - float64(want)); !(d <= tolerance) {
						t.Fatalf("element %d of the reconstruction: got %v, want %v as in ONNX Runtime", i, rebuilt[i], want)
					}
				}
				for i, want := range tensors[2].Data() {
					if d := math.Abs(float64(errs[i]) - float64(want)); !(d <= tolerance*float64(want)) || want <= 0 {
						t.Errorf("error of image %d: got %v, want %v as in ONNX Runtime", i, errs[i], want)
					}
				}
			}
		})
	}
}
