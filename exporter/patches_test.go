package exporter

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
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

// bankOf is how many normal images the models here compare with.
const bankOf = 5

// patched is a small model of that side that decides by patch features, with tensors
// that are drawn at random and figures of an ordinary size.
func patched(side int, heads bool) *models.Model {
	m := sample()
	r := rand.New(rand.NewPCG(uint64(side), 6))
	m.ImageSize, m.Metadata.ImageSize = side, side
	m.Metadata.Decision = &models.Decision{Measure: models.MeasurePatchMahalanobis, Threshold: 1, Backbone: models.EmbeddedBackbone()}
	for _, p := range models.PatchParameters(side, heads, bankOf) {
		low, high := -1.0, 1.0
		switch name := p.Name[strings.LastIndexByte(p.Name, '.')+1:]; {
		case name == "whitening":
			low, high = -0.2, 0.2
		case name == "directions":
			low, high = -0.02, 0.02
		case name == "precision" || name == "scale" || name == "slope":
			low, high = 0.5, 1
		case name == "weight" && len(p.Shape) == 3:
			low, high = 0.05, 0.2
		case name == "weight":
			low, high = -0.1, 0.1
		case name == "offset":
			low, high = 3, 5
		}
		m.Reference = append(m.Reference, models.Tensor{Name: p.Name, Shape: p.Shape, Data: feed(r, p.Shape, low, high)})
	}
	return m
}

// withAndWithout names models with heads and without.
var withAndWithout = map[string]bool{"heads": true, "no heads": false}

func TestPatchStepsAreTheirReferences(t *testing.T) {
	for _, c := range []struct {
		name     string
		kind     network.Kind
		size     int
		operands [][]int
		high     []float64 // the largest number of each operand
		floor    bool      // some results are held at 0
	}{
		{"distance", network.PatchDistance, 0, [][]int{{3, 5, 4, 4}, {5, 4, 4}, {5, 5, 1, 1}, {1, 4, 4}, {16, 3, 5}}, []float64{2, 1, 1, 1, 0.2}, false},
		{"distance of one place", network.PatchDistance, 0, [][]int{{2, 7, 1, 1}, {7, 1, 1}, {7, 7, 1, 1}, {1, 1, 1}, {1, 1, 7}}, []float64{2, 1, 1, 1, 0.2}, false},
		{"distance with more taken off than there is", network.PatchDistance, 0, [][]int{{2, 5, 4, 4}, {5, 4, 4}, {5, 5, 1, 1}, {1, 4, 4}, {16, 3, 5}}, []float64{2, 1, 1, 1, 1.5}, true},
		{"nearest", network.Nearest, 0, [][]int{{3, 6, 1, 1}, {6, 1, 1}, {6, 6, 1, 1}, {9, 6}}, []float64{2, 1, 1, 2}, false},
		{"nearest of one", network.Nearest, 0, [][]int{{2, 6, 1, 1}, {6, 1, 1}, {6, 6, 1, 1}, {1, 6}}, []float64{2, 1, 1, 2}, false},
		{"mean", network.WeightedMean, 0, [][]int{{2, 5, 3, 4}, {5, 1, 1}, {5, 1, 1}, {5, 1, 1}}, []float64{2, 1, 1, 1}, false},
		{"mean of one", network.WeightedMean, 0, [][]int{{2, 1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}}, []float64{2, 1, 1, 1}, false},
		{"first", network.First, 2, [][]int{{5, 1, 1}}, []float64{1}, false},
		{"first of all", network.First, 3, [][]int{{3, 1, 1}}, []float64{1}, false},
		{"crop", network.Crop, 2, [][]int{{2, 3, 8, 9}}, []float64{1}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(2, 3))
			g := gorgonia.NewGraph()
			var in gorgonia.Nodes
			shapes, values, nodes := map[string][]int{}, map[string][]float32{}, map[*gorgonia.Node][]float32{}
			for i, s := range c.operands {
				name := fmt.Sprint("operand", i)
				n := gorgonia.NewTensor(g, tensor.Float32, len(s), gorgonia.WithShape(s...), gorgonia.WithName(name))
				low := -c.high[i]
				if c.kind == network.PatchDistance && i == 3 || c.kind == network.WeightedMean && i == 3 {
					low = c.high[i] / 2 // scales and weights
				}
				shapes[name], values[name] = s, feed(r, s, low, c.high[i])
				nodes[n] = values[name]
				in = append(in, n)
			}
			result, err := gorgonia.ApplyOp(network.ScoringOp{Kind: c.kind, Size: c.size}, in...)
			if err != nil {
				t.Fatal(err)
			}
			want := onGorgonia(t, g, nodes, gorgonia.Nodes{result})[0]
			if held := slices.Contains(want, 0); held != c.floor {
				t.Errorf("some are held at 0: %v", held)
			}
			for name, with := range bothOperators {
				l := newStep("step", with)
				for i, n := range in {
					l.in(n, fmt.Sprint("operand", i))
				}
				l.out(result, "result")
				m, err := l.finish("")
				if err != nil {
					t.Fatal(err)
				}
				got := onONNXRuntime(t, m, shapes, map[string][]int{"result": result.Shape()}, values)["result"]
				if d := relative(got, want); !(d < 1e-6) {
					t.Errorf("%s: differs by %.2g", name, d)
				}
			}
		})
	}
}

// An image that is in the bank has a distance of 0, but for rounding, and none below.
func TestNearestOfAnImageInTheBankIsHeldAboveZero(t *testing.T) {
	const c, bank = 64, 8
	r := rand.New(rand.NewPCG(4, 5))
	identity := make([]float32, c*c)
	for i := range c {
		identity[i*c+i] = 1
	}
	features := feed(r, []int{bank, c}, -3, 3)
	g := gorgonia.NewGraph()
	input := func(name string, shape ...int) *gorgonia.Node {
		return gorgonia.NewTensor(g, tensor.Float32, len(shape), gorgonia.WithShape(shape...), gorgonia.WithName(name))
	}
	in := gorgonia.Nodes{input("x", bank, c, 1, 1), input("mean", c, 1, 1), input("whitening", c, c, 1, 1), input("bank", bank, c)}
	result, err := gorgonia.ApplyOp(network.ScoringOp{Kind: network.Nearest}, in...)
	if err != nil {
		t.Fatal(err)
	}
	l := newStep("step", Portable)
	shapes := map[string][]int{}
	for _, n := range in {
		l.in(n, n.Name())
		shapes[n.Name()] = n.Shape()
	}
	l.out(result, "result")
	m, err := l.finish("")
	if err != nil {
		t.Fatal(err)
	}
	got := onONNXRuntime(t, m, shapes, map[string][]int{"result": result.Shape()},
		map[string][]float32{"x": features, "mean": make([]float32, c), "whitening": identity, "bank": features})["result"]
	for i, v := range got {
		if v < 0 || v > network.LogarithmOffset/100 {
			t.Errorf("image %d has a distance of %v from itself", i, v)
		}
	}
}

func TestPatchStepsRefuseShapesThatDoNotFit(t *testing.T) {
	distance := []tensor.Shape{{2, 5, 4, 4}, {5, 4, 4}, {5, 5, 1, 1}, {1, 4, 4}, {16, 3, 5}}
	near := []tensor.Shape{{2, 6, 1, 1}, {6, 1, 1}, {6, 6, 1, 1}, {9, 6}}
	mean := []tensor.Shape{{2, 5, 3, 4}, {5, 1, 1}, {5, 1, 1}, {5, 1, 1}}
	for _, c := range []struct {
		kind    network.Kind
		size    int
		good    []tensor.Shape
		operand int
		bad     tensor.Shape
	}{
		{network.PatchDistance, 0, distance, 0, tensor.Shape{2, 5, 4, 5}},
		{network.PatchDistance, 0, distance, 1, tensor.Shape{5, 4, 5}},
		{network.PatchDistance, 0, distance, 2, tensor.Shape{5, 4, 1, 1}},
		{network.PatchDistance, 0, distance, 3, tensor.Shape{1, 4, 3}},
		{network.PatchDistance, 0, distance, 4, tensor.Shape{15, 3, 5}},
		{network.PatchDistance, 0, distance, 4, tensor.Shape{16, 3, 4}},
		{network.Nearest, 0, near, 0, tensor.Shape{2, 6, 2, 1}},
		{network.Nearest, 0, near, 1, tensor.Shape{5, 1, 1}},
		{network.Nearest, 0, near, 2, tensor.Shape{6, 5, 1, 1}},
		{network.Nearest, 0, near, 3, tensor.Shape{9, 5}},
		{network.WeightedMean, 0, mean, 1, tensor.Shape{4, 1, 1}},
		{network.WeightedMean, 0, mean, 2, tensor.Shape{5, 2, 1}},
		{network.WeightedMean, 0, mean, 3, tensor.Shape{1, 1, 1}},
		{network.First, 3, []tensor.Shape{{3, 1, 1}}, 0, tensor.Shape{2, 1, 1}},
		{network.Crop, 2, []tensor.Shape{{1, 1, 5, 5}}, 0, tensor.Shape{1, 1, 4, 5}},
	} {
		infer := func(shapes []tensor.Shape) error {
			var in []gorgonia.DimSizer
			for _, s := range shapes {
				in = append(in, s)
			}
			_, err := network.ScoringOp{Kind: c.kind, Size: c.size}.InferShape(in...)
			return err
		}
		if err := infer(c.good); err != nil {
			t.Errorf("%s: %v", c.kind, err)
		}
		bad := slices.Clone(c.good)
		bad[c.operand] = c.bad
		if err := infer(bad); err == nil {
			t.Errorf("%s takes %v as operand %d", c.kind, c.bad, c.operand)
		}
	}
}

// judgedBy runs a model's file, or a graph that is served, on images of its side.
func judgedBy(t *testing.T, file []byte, kernels bool, threads, images int, pixels []float32, m *models.Model, names ...string) [][]float32 {
	t.Helper()
	s, err := orttest.OpenThreads(t, threads).NewSession(file, []string{network.ImageName}, names, ort.SessionOptions{Threads: threads, Kernels: kernels})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	side := m.ImageSize
	var out []*ort.Tensor
	for _, n := range names {
		shape := []int{images}
		switch n {
		case network.MapName:
			shape = []int{images, side, side}
		case network.MembersName:
			shape = []int{images, len(models.Members(models.HasHeads(m.Reference))), 1, 1}
		}
		out = append(out, orttest.Tensor(t, nil, shape...))
	}
	in := orttest.Tensor(t, pixels, images, models.InputChannels, side, side)
	if err := s.Run(t.Context(), []*ort.Tensor{in}, out); err != nil {
		t.Fatal(err)
	}
	var data [][]float32
	for _, x := range out {
		data = append(data, slices.Clone(x.Data()))
	}
	return data
}

func inferenceFile(t *testing.T, m *models.Model) []byte {
	t.Helper()
	file, err := InferenceModel(m)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func served(t *testing.T, m *models.Model, also Results, with Operators) *StepModel {
	t.Helper()
	s, err := ServedModel(m, also, with)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// agree holds figures against others, element by element, as shares of 1 and more.
func agree(t *testing.T, what string, got, want []float32, tolerance float64) {
	t.Helper()
	worst := 0.0
	for i, w := range want {
		d := math.Abs(float64(got[i])-float64(w)) / max(1, math.Abs(float64(w)))
		if !(d <= worst) { // a NaN counts
			worst = d
		}
	}
	if len(got) != len(want) || !(worst <= tolerance) {
		t.Errorf("%s: %d figures of %d, they differ by %.2g", what, len(got), len(want), worst)
	}
}

func TestPatchJudgementIsThatOfGorgoniasMachine(t *testing.T) {
	// The machine takes a second for an image of 128 pixels: of one side each.
	for name, side := range map[string]int{"heads": 64, "no heads": 16} {
		t.Run(name, func(t *testing.T) {
			m := patched(side, withAndWithout[name])
			f, err := network.Autoencoder(m.Architecture, 1, side, side)
			if err != nil {
				t.Fatal(err)
			}
			j, err := f.Judge(m.Reference)
			if err != nil {
				t.Fatal(err)
			}
			pixels := pattern(side)
			inputs := map[*gorgonia.Node][]float32{f.Image: pixels}
			for i, n := range f.Parameters {
				inputs[n] = m.Weights[i].Data
			}
			for i, n := range j.Parameters {
				inputs[n] = m.Reference[i].Data
			}
			for _, fixed := range j.Filters {
				inputs[fixed.Node] = fixed.Data
			}
			names := []string{network.ErrorName, network.MSEName, network.MapName, network.MembersName}
			want := onGorgonia(t, f.Graph, inputs, gorgonia.Nodes{j.Score, f.Error, j.Map, j.Members})
			got := judgedBy(t, inferenceFile(t, m), false, 1, 1, pixels, m, names[:3]...)
			for i, n := range names[:3] {
				agree(t, "file: "+n, got[i], want[i], 1e-5)
			}
			for with, operators := range bothOperators {
				s := served(t, m, Results{Images: true, Members: true}, operators)
				got := judgedBy(t, s.ONNX, s.Kernels, 2, 1, pixels, m, names...)
				for i, n := range names {
					agree(t, with+": "+n, got[i], want[i], 1e-5)
				}
			}
			score, highest := want[0][0], slices.Max(want[2])
			if !(score > 0.05 && score < 50) || !(highest > 0) {
				t.Errorf("the score is %v and the map's maximum %v: they tell nothing", score, highest)
			}
		})
	}
}

// The sides that models.BackboneInputOf tells apart: enlarged, with a border, both, and
// as they are. The finest places lie apart on the last.
func TestPatchJudgementIsLoweredForEverySide(t *testing.T) {
	for _, side := range []int{16, 48, 64, 144, 256} {
		m := patched(side, true)
		pixels := pattern(side)
		names := []string{network.ErrorName, network.MSEName, network.MapName, network.MembersName}
		want := judgedBy(t, inferenceFile(t, m), false, 2, 1, pixels, m, names[:3]...)
		s := served(t, m, Results{Images: true, Members: true}, Processor)
		got := judgedBy(t, s.ONNX, s.Kernels, 2, 1, pixels, m, names...)
		for i, n := range names[:3] {
			agree(t, fmt.Sprintf("%d px: %s", side, n), got[i], want[i], 1e-5)
		}
		if !models.Finite(got[2]...) || slices.Min(got[2]) == slices.Max(got[2]) {
			t.Errorf("%d px: the map is the same everywhere, or not finite", side)
		}
		in := models.BackboneInputOf(side)
		if in.Side != side*in.Times+2*in.Border || in.Side%network.BackboneStride != 0 || in.Side < 128 {
			t.Errorf("%d px: %+v", side, in)
		}
	}
}

func TestTheFileOfTheWholeImageIsStandardONNX(t *testing.T) {
	for name, heads := range withAndWithout {
		t.Run(name, func(t *testing.T) {
			const side = 32
			m := patched(side, heads)
			image, err := ImageModel(m)
			if err != nil {
				t.Fatal(err)
			}
			p := new(onnx.ModelProto)
			if err := proto.Unmarshal(image, p); err != nil {
				t.Fatal(err)
			}
			if got := described(t, p.GetGraph().GetOutput()); got != "reconstruction_error FLOAT [1], mse FLOAT [1], is_anomaly BOOL [1], anomaly_map FLOAT [32 32]" {
				t.Errorf("outputs %s", got)
			}
			for _, n := range p.GetGraph().GetNode() {
				if n.GetDomain() != "" {
					t.Errorf("%s is of domain %q", n.GetOpType(), n.GetDomain())
				}
			}
			props := map[string]string{}
			for _, p := range p.GetMetadataProps() {
				props[p.GetKey()] = p.GetValue()
			}
			if props["measure"] != models.MeasurePatchMahalanobis || props["threshold"] != "1" {
				t.Errorf("it decides by %s above %s", props["measure"], props["threshold"])
			}
		})
	}
}

// What a model says of an image must not depend on the machine or on other images.
func TestPatchJudgementHasTheSameBitsInAnyBatchAndOnAnyNumberOfThreads(t *testing.T) {
	const side = 48
	m := patched(side, true)
	names := []string{network.ErrorName, network.MSEName, network.MembersName}
	r := rand.New(rand.NewPCG(1, 9))
	const all = 6
	pixels := feed(r, []int{all, 3, side, side}, 0, 1)
	one := len(pixels) / all
	for with, operators := range bothOperators {
		s := served(t, m, Results{Members: true}, operators)
		var alone [all][][]float32
		for i := range alone {
			alone[i] = judgedBy(t, s.ONNX, s.Kernels, 1, 1, pixels[i*one:(i+1)*one], m, names...)
		}
		for _, c := range []struct{ threads, images int }{{1, 2}, {1, all}, {2, 1}, {2, 5}, {3, 3}, {3, all}} {
			got := judgedBy(t, s.ONNX, s.Kernels, c.threads, c.images, pixels[:c.images*one], m, names...)
			for i := range c.images {
				for k, name := range names {
					each := len(alone[i][k])
					if g := got[k][i*each : (i+1)*each]; !slices.Equal(g, alone[i][k]) {
						t.Errorf("%s: %s of image %d of %d on %d threads is %v, alone it is %v", with, name, i, c.images, c.threads, g, alone[i][k])
					}
				}
			}
		}
	}
}

func TestPatchesComeBackFromEveryFile(t *testing.T) {
	for name, heads := range withAndWithout {
		t.Run(name, func(t *testing.T) { comesBack(t, patched(32, heads)) })
	}
}

func TestModelWhosePatchesDoNotFitIsNotWritten(t *testing.T) {
	for name, edit := range map[string]func(m *models.Model){
		"no tensors":               func(m *models.Model) { m.Reference = nil },
		"a tensor too few":         func(m *models.Model) { m.Reference = m.Reference[1:] },
		"another shape":            func(m *models.Model) { m.Reference[0].Shape = []int{1} },
		"not finite":               func(m *models.Model) { m.Reference[0].Data[3] = float32(math.Inf(1)) },
		"tensors, decides by mse":  func(m *models.Model) { m.Metadata.Decision = nil },
		"tensors of another image": func(m *models.Model) { m.Reference = patched(144, true).Reference },
		"no backbone":              func(m *models.Model) { m.Metadata.Decision.Backbone = nil },
	} {
		m := patched(32, true)
		edit(m)
		var b bytes.Buffer
		if err := WriteCheckpoint(&b, m); !errors.Is(err, ErrUnwritable) || b.Len() > 0 {
			t.Errorf("%s: %v, %d bytes written", name, err, b.Len())
		}
	}
}

func TestHeadsGradientsAreThoseOfGorgoniasMachine(t *testing.T) {
	const n, side = 2, 32
	g, err := network.DifferentiateHead(n, side, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 7))
	taps := models.HeadTaps()
	p := taps[0].Patches(side)
	shapes := map[string][]int{network.TargetName: {n, 1, p, p}, network.WeightName: {1}}
	values := map[string][]float32{network.TargetName: feed(r, shapes[network.TargetName], 0, 1), network.WeightName: {0.5}}
	inputs := map[*gorgonia.Node][]float32{g.Target: values[network.TargetName], g.Weight: values[network.WeightName]}
	for i, tap := range taps {
		name := FeaturesName(tap.Block)
		shapes[name] = []int{n, tap.Channels, tap.Patches(side), tap.Patches(side)}
		values[name] = feed(r, shapes[name], -2, 2)
		inputs[g.Features[i]] = values[name]
	}
	outputs := map[string][]int{"loss": {1}}
	for i, q := range models.HeadParameters(1) {
		shapes[q.Name], values[q.Name] = q.Shape, feed(r, q.Shape, -0.2, 0.2)
		inputs[g.Parameters[i]] = values[q.Name]
		outputs[network.GradientName(q.Name, 0)] = q.Shape
	}
	want := onGorgonia(t, g.Graph, inputs, append(gorgonia.Nodes{g.Loss, g.Logits}, g.Gradients...))
	for name, with := range bothOperators {
		m, err := HeadGradientModel(n, side, 1, with)
		if err != nil {
			t.Fatal(err)
		}
		got := onONNXRuntime(t, m, shapes, outputs, values)
		for i, output := range m.Outputs {
			if i > 0 {
				i++ // the logits are no output
			}
			if d := relative(got[output], want[i]); !(d < 1e-4) {
				t.Errorf("%s: %s differs by %v", name, output, d)
			}
		}
		one, err := HeadModel(side, 1, with)
		if err != nil {
			t.Fatal(err)
		}
		single := maps.Clone(shapes)
		for _, tap := range taps {
			name := FeaturesName(tap.Block)
			single[name] = append([]int{1}, shapes[name][1:]...)
		}
		logits := onONNXRuntime(t, one, single, map[string][]int{"logits": {1, 1, p, p}}, values)["logits"]
		if d := relative(logits, want[1][:p*p]); !(d < 1e-5) {
			t.Errorf("%s: logits differ by %v", name, d)
		}
	}
}
