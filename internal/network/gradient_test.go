package network

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// random returns a tensor whose elements are not near 0, where ReLU has no
// derivative.
func random(r *rand.Rand, shape ...int) *tensor.Dense {
	n := tensor.Shape(shape).TotalSize()
	data := make([]float32, n)
	for i := range data {
		data[i] = float32(0.1 + 0.9*r.Float64())
		if r.IntN(2) == 0 {
			data[i] = -data[i]
		}
	}
	return newDense(data, shape...)
}

// weighted returns Σ y·r, a scalar that depends on every element of y.
func weighted(t *testing.T, op gorgonia.Op, in []*tensor.Dense, r []float32) float64 {
	t.Helper()
	vs := make([]gorgonia.Value, len(in))
	for i, v := range in {
		vs[i] = v
	}
	y, err := op.Do(vs...)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for i, v := range y.Data().([]float32) {
		sum += float64(v) * float64(r[i])
	}
	return sum
}

// symbolic returns the derivatives of weighted, differentiated by Gorgonia and
// computed on its tape machine.
func symbolic(t *testing.T, op gorgonia.Op, in []*tensor.Dense, r *tensor.Dense) [][]float32 {
	t.Helper()
	g := gorgonia.NewGraph()
	var nodes gorgonia.Nodes
	for i, v := range in {
		nodes = append(nodes, gorgonia.NewTensor(g, tensor.Float32, v.Dims(),
			gorgonia.WithShape(v.Shape()...), gorgonia.WithName(string(rune('a'+i))), gorgonia.WithValue(v)))
	}
	weight := gorgonia.NewTensor(g, tensor.Float32, r.Dims(), gorgonia.WithShape(r.Shape()...), gorgonia.WithName("r"), gorgonia.WithValue(r))
	y := gorgonia.Must(gorgonia.ApplyOp(op, nodes...))
	loss := gorgonia.Must(gorgonia.Sum(gorgonia.Must(gorgonia.HadamardProd(y, weight))))
	grads, err := gorgonia.Grad(loss, nodes...)
	if err != nil {
		t.Fatal(err)
	}
	return testkit.RunGorgonia(t, g, grads)
}

func TestGrad_MatchesFiniteDifferences(t *testing.T) {
	half := Half()
	odd := Window{Kernel: 3, Stride: 2, Padding: 1}
	wide := Window{Kernel: 5, Stride: 1, Padding: 2}
	for _, c := range []struct {
		name   string
		op     gorgonia.Op
		shapes [][]int
	}{
		{"convolution of a square", Conv2D{Window: half}, [][]int{{2, 3, 8, 8}, {4, 3, 3, 3}, {4}}},
		{"convolution of a rectangle", Conv2D{Window: half}, [][]int{{1, 2, 4, 10}, {3, 2, 3, 3}, {3}}},
		{"convolution of odd sides", Conv2D{Window: odd}, [][]int{{1, 2, 5, 7}, {2, 2, 3, 3}, {2}}},
		{"convolution of stride 1", Conv2D{Window: wide}, [][]int{{2, 2, 6, 5}, {3, 2, 5, 5}, {3}}},
		{"transposed convolution of a square", ConvTranspose2D{Window: half}, [][]int{{2, 4, 4, 4}, {4, 3, 3, 3}, {3}}},
		{"transposed convolution of a rectangle", ConvTranspose2D{Window: half}, [][]int{{1, 3, 2, 5}, {3, 2, 3, 3}, {2}}},
		{"transposed convolution to odd sides", ConvTranspose2D{Window: odd}, [][]int{{1, 2, 3, 4}, {2, 2, 3, 3}, {2}}},
		{"convolution with a surplus of zeros", Conv2D{Window: Same(3, 2)}, [][]int{{2, 3, 4, 6}, {2, 3, 3, 3}, {2}}},
		{"convolution of single pixels", Conv2D{Window: Same(1, 1)}, [][]int{{2, 3, 4, 6}, {5, 3, 1, 1}, {5}}},
		{"ReLU", ReLU{}, [][]int{{2, 3, 4, 5}}},
		{"ReLU6", ReLU6{}, [][]int{{2, 3, 4, 5}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, uint64(len(c.name))))
			var in []*tensor.Dense
			var ds []gorgonia.DimSizer
			for _, s := range c.shapes {
				in = append(in, random(r, s...))
				ds = append(ds, tensor.Shape(s))
			}
			shape, err := c.op.InferShape(ds...)
			if err != nil {
				t.Fatal(err)
			}
			weight := random(r, shape...)
			got := symbolic(t, c.op, in, weight)
			const eps = 1.0 / 64
			for i, v := range in {
				data := v.Data().([]float32)
				for j := range data {
					was := data[j]
					data[j] = was + eps
					above := weighted(t, c.op, in, weight.Data().([]float32))
					data[j] = was - eps
					below := weighted(t, c.op, in, weight.Data().([]float32))
					data[j] = was
					want := (above - below) / (2 * eps)
					if math.Abs(float64(got[i][j])-want) > 1e-3*(1+math.Abs(want)) {
						t.Fatalf("input %d element %d: %v, by finite differences %v", i, j, got[i][j], want)
					}
				}
			}
		})
	}
}

// The results are computed by hand from PyTorch's definition.
func TestConv2D_MatchesPyTorchsDefinition(t *testing.T) {
	x := newDense([]float32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, 1, 1, 4, 4)
	k := newDense([]float32{1, 0, 0, 0, 10, 0, 0, 0, 100}, 1, 1, 3, 3)
	b := newDense([]float32{0.5}, 1)
	y, err := (Conv2D{Window: Half()}).Do(x, k, b)
	if err != nil {
		t.Fatal(err)
	}
	// Top left: the centre tap meets 1, the lower right one 6, the upper left one
	// the padding. Lower right: 11, 16 and 6.
	want := []float32{610.5, 830.5, 1490.5, 1716.5}
	for i, v := range y.Data().([]float32) {
		if v != want[i] {
			t.Fatalf("convolution: %v, expected %v", y.Data(), want)
		}
	}
	up, err := (ConvTranspose2D{Window: Half()}).Do(newDense([]float32{1, 2, 3, 4}, 1, 1, 2, 2), k, b)
	if err != nil {
		t.Fatal(err)
	}
	wantUp := []float32{
		10.5, 0.5, 20.5, 0.5,
		0.5, 104.5, 0.5, 200.5,
		30.5, 0.5, 40.5, 0.5,
		0.5, 300.5, 0.5, 400.5,
	}
	for i, v := range up.Data().([]float32) {
		if v != wantUp[i] {
			t.Fatalf("transposed convolution: %v, expected %v", up.Data(), wantUp)
		}
	}
}

func TestInferShape_RejectsMismatchedShapes(t *testing.T) {
	s := func(d ...int) gorgonia.DimSizer { return tensor.Shape(d) }
	for _, c := range []struct {
		name string
		op   gorgonia.Op
		in   []gorgonia.DimSizer
	}{
		{"too few inputs", Conv2D{Window: Half()}, []gorgonia.DimSizer{s(1, 3, 8, 8)}},
		{"three dimensions", Conv2D{Window: Half()}, []gorgonia.DimSizer{s(3, 8, 8), s(4, 3, 3, 3), s(4)}},
		{"other channels", Conv2D{Window: Half()}, []gorgonia.DimSizer{s(1, 3, 8, 8), s(4, 2, 3, 3), s(4)}},
		{"other channels, transposed", ConvTranspose2D{Window: Half()}, []gorgonia.DimSizer{s(1, 3, 8, 8), s(4, 3, 3, 3), s(3)}},
		{"gradient of other channels", ConvInputGrad{Window: Half()}, []gorgonia.DimSizer{s(1, 3, 4, 4), s(4, 3, 3, 3)}},
		{"mismatched sides", ConvWeightGrad{Window: Half()}, []gorgonia.DimSizer{s(1, 3, 4, 4), s(1, 3, 4, 4)}},
		{"a weight of other channels, depthwise", DepthwiseConv2D{Window: Same(3, 1)}, []gorgonia.DimSizer{s(1, 3, 8, 8), s(4, 1, 3, 3), s(3)}},
		{"a weight of several channels, depthwise", DepthwiseConv2D{Window: Same(3, 1)}, []gorgonia.DimSizer{s(1, 3, 8, 8), s(3, 3, 3, 3), s(3)}},
		{"another kernel, depthwise", DepthwiseConv2D{Window: Same(3, 1)}, []gorgonia.DimSizer{s(1, 3, 8, 8), s(3, 1, 5, 5), s(3)}},
		{"a vector", ChannelSum{}, []gorgonia.DimSizer{s(4)}},
		{"a matrix", ReLU{}, []gorgonia.DimSizer{s(4, 4)}},
	} {
		if shape, err := c.op.InferShape(c.in...); err == nil {
			t.Errorf("%s: %v infers %v, expected an error", c.name, c.op, shape)
		}
	}
}

func TestAutoencoder_HasTheContractsShapes(t *testing.T) {
	f, err := Autoencoder(models.DefaultArchitecture(), 2, 32, 48)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Reconstruction.Shape(); !got.Eq(tensor.Shape{2, 3, 32, 48}) {
		t.Errorf("the reconstruction has shape %v", got)
	}
	if got := f.Error.Shape(); !got.Eq(tensor.Shape{2}) {
		t.Errorf("the error has shape %v", got)
	}
	for _, side := range []int{0, 8, 24, 40} {
		if _, err := Autoencoder(models.DefaultArchitecture(), 1, side, 32); err == nil {
			t.Errorf("a side of %d: no error", side)
		}
	}
}
