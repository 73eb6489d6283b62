package exporter

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

func TestPatchOperators_MatchGorgonia(t *testing.T) {
	for _, c := range []struct {
		name     string
		kind     network.Kind
		size     int
		operands [][]int
		high     []float64 // the largest number of each operand
		floor    bool      // whether some results are clamped to 0
	}{
		{"distance", network.PatchDistance, 0, [][]int{{3, 5, 4, 4}, {5, 4, 4}, {5, 5, 1, 1}, {1, 4, 4}, {16, 3, 5}}, []float64{2, 1, 1, 1, 0.2}, false},
		{"distance of one patch", network.PatchDistance, 0, [][]int{{2, 7, 1, 1}, {7, 1, 1}, {7, 7, 1, 1}, {1, 1, 1}, {1, 1, 7}}, []float64{2, 1, 1, 1, 0.2}, false},
		{"negative distance", network.PatchDistance, 0, [][]int{{2, 5, 4, 4}, {5, 4, 4}, {5, 5, 1, 1}, {1, 4, 4}, {16, 3, 5}}, []float64{2, 1, 1, 1, 1.5}, true},
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
				shapes[name], values[name] = s, randomValues(r, s, low, c.high[i])
				nodes[n] = values[name]
				in = append(in, n)
			}
			result, err := gorgonia.ApplyOp(network.ScoringOp{Kind: c.kind, Size: c.size}, in...)
			if err != nil {
				t.Fatal(err)
			}
			want := runGorgonia(t, g, nodes, gorgonia.Nodes{result})[0]
			if clamped := slices.Contains(want, 0); clamped != c.floor {
				t.Errorf("some results are 0: %v, want %v", clamped, c.floor)
			}
			for name, with := range bothOperators {
				l := newSessionLowering("operator", with)
				for i, n := range in {
					l.in(n, fmt.Sprint("operand", i))
				}
				l.out(result, "result")
				m, err := l.finish("")
				if err != nil {
					t.Fatal(err)
				}
				got := runONNXRuntime(t, m, shapes, map[string][]int{"result": result.Shape()}, values)["result"]
				if d := relativeError(got, want); !(d < 1e-6) {
					t.Errorf("%s: differs by %.2g", name, d)
				}
			}
		})
	}
}

// Rounding must not make the distance of an image in the bank negative.
func TestNearest_IsNotNegativeForImageInBank(t *testing.T) {
	const c, bank = 64, 8
	r := rand.New(rand.NewPCG(4, 5))
	identity := make([]float32, c*c)
	for i := range c {
		identity[i*c+i] = 1
	}
	features := randomValues(r, []int{bank, c}, -3, 3)
	g := gorgonia.NewGraph()
	input := func(name string, shape ...int) *gorgonia.Node {
		return gorgonia.NewTensor(g, tensor.Float32, len(shape), gorgonia.WithShape(shape...), gorgonia.WithName(name))
	}
	in := gorgonia.Nodes{input("x", bank, c, 1, 1), input("mean", c, 1, 1), input("whitening", c, c, 1, 1), input("bank", bank, c)}
	result, err := gorgonia.ApplyOp(network.ScoringOp{Kind: network.Nearest}, in...)
	if err != nil {
		t.Fatal(err)
	}
	l := newSessionLowering("operator", Portable)
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
	got := runONNXRuntime(t, m, shapes, map[string][]int{"result": result.Shape()},
		map[string][]float32{"x": features, "mean": make([]float32, c), "whitening": identity, "bank": features})["result"]
	for i, v := range got {
		if v < 0 || v > network.LogarithmOffset/100 {
			t.Errorf("image %d has the distance %v from itself", i, v)
		}
	}
}

func TestPatchOperators_RejectShapesThatDoNotFit(t *testing.T) {
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
			t.Errorf("%s accepts %v as operand %d", c.kind, c.bad, c.operand)
		}
	}
}
