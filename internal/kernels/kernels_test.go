package kernels_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/kernels"
	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"google.golang.org/protobuf/proto"
)

// operand is a tensor with its shape. An operand without a shape is omitted.
type operand struct {
	shape []int
	data  []float32
}

func random(r *rand.Rand, shape ...int) operand {
	n := 1
	for _, d := range shape {
		n *= d
	}
	o := operand{shape, make([]float32, n)}
	for i := range o.data {
		o.data[i] = float32(r.Float64()*2 - 1)
	}
	return o
}

// run runs one operator in ONNX Runtime.
func run(t *testing.T, threads int, op string, attributes map[string]int, in []operand, shape ...int) ([]float32, error) {
	t.Helper()
	return runNumbers(t, threads, op, attributes, in, shape...)
}

// runNumbers is run with attributes of type int or float32.
func runNumbers[N int | float32](t *testing.T, threads int, op string, attributes map[string]N, in []operand, shape ...int) ([]float32, error) {
	t.Helper()
	s, tensors, out := session(t, threads, op, attributes, in, shape...)
	err := s.Run(t.Context(), tensors, []*ort.Tensor{out})
	return slices.Clone(out.Data()), err
}

// session returns a session with one operator, its inputs and its output.
func session[N int | float32](t *testing.T, threads int, op string, attributes map[string]N, in []operand, shape ...int) (*ort.Session, []*ort.Tensor, *ort.Tensor) {
	t.Helper()
	engine := orttest.Open(t)
	node := &onnx.NodeProto{OpType: proto.String(op), Domain: proto.String(kernels.Domain), Name: proto.String("it"), Output: []string{"out"}}
	graph := &onnx.GraphProto{Name: proto.String("test"), Node: []*onnx.NodeProto{node}}
	describe := func(name string, shape []int) *onnx.ValueInfoProto {
		s := &onnx.TensorShapeProto{}
		for _, d := range shape {
			s.Dim = append(s.Dim, &onnx.TensorShapeProto_Dimension{Value: &onnx.TensorShapeProto_Dimension_DimValue{DimValue: int64(d)}})
		}
		return &onnx.ValueInfoProto{Name: proto.String(name), Type: &onnx.TypeProto{Value: &onnx.TypeProto_TensorType{
			TensorType: &onnx.TypeProto_Tensor{ElemType: proto.Int32(int32(onnx.TensorProto_FLOAT)), Shape: s}}}}
	}
	for name, v := range attributes {
		a := &onnx.AttributeProto{Name: proto.String(name), Type: onnx.AttributeProto_INT.Enum(), I: proto.Int64(int64(v))}
		if f, ok := any(v).(float32); ok {
			a = &onnx.AttributeProto{Name: proto.String(name), Type: onnx.AttributeProto_FLOAT.Enum(), F: proto.Float32(f)}
		}
		node.Attribute = append(node.Attribute, a)
	}
	var names []string
	var tensors []*ort.Tensor
	for i, o := range in {
		if o.shape == nil {
			node.Input = append(node.Input, "")
			continue
		}
		name := fmt.Sprint("in", i)
		node.Input = append(node.Input, name)
		graph.Input = append(graph.Input, describe(name, o.shape))
		names = append(names, name)
		tensors = append(tensors, orttest.Tensor(t, o.data, o.shape...))
	}
	graph.Output = append(graph.Output, describe("out", shape))
	model, err := proto.Marshal(&onnx.ModelProto{IrVersion: proto.Int64(8), Graph: graph, OpsetImport: []*onnx.OperatorSetIdProto{
		{Domain: proto.String(""), Version: proto.Int64(17)}, {Domain: proto.String(kernels.Domain), Version: proto.Int64(kernels.Version)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := engine.NewSession(model, names, []string{"out"}, ort.SessionOptions{Threads: threads, Kernels: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, tensors, orttest.Tensor(t, nil, shape...)
}

// convolution is a case: the kernel's side, the stride, n small images of h×w, and the channels of the
// small and the large images.
type convolution struct{ kernel, stride, n, h, w, small, large int }

func (c convolution) String() string {
	return fmt.Sprintf("%d×%d stride %d, %d×%d×%d, channels %d and %d", c.kernel, c.kernel, c.stride, c.n, c.h, c.w, c.small, c.large)
}

func (c convolution) attributes() map[string]int {
	return map[string]int{"kernel": c.kernel, "stride": c.stride, "padding": c.kernel / 2}
}

func (c convolution) layer(rectify, fixed int) map[string]int {
	a := c.attributes()
	a["rectify"], a["fixed"] = rectify, fixed
	return a
}

// each calls f with the offsets of every product, in images with channels last.
func (c convolution) each(f func(small, large, kernel int)) { c.eachFrom(c.kernel/2, f) }

// eachFrom is each with the given padding at the top and left.
func (c convolution) eachFrom(padding int, f func(small, large, kernel int)) {
	height, width := c.h*c.stride, c.w*c.stride
	for i := range c.n * c.h * c.w {
		n, y, x := i/c.w/c.h, i/c.w%c.h, i%c.w
		for tap := range c.kernel * c.kernel {
			Y, X := y*c.stride-padding+tap/c.kernel, x*c.stride-padding+tap%c.kernel
			if Y < 0 || X < 0 || Y >= height || X >= width {
				continue
			}
			for s := range c.small {
				for l := range c.large {
					f(i*c.small+s, ((n*height+Y)*width+X)*c.large+l, (s*c.large+l)*c.kernel*c.kernel+tap)
				}
			}
		}
	}
}

// convolutions covers more and fewer channels than a tile, numbers of pixels that are no multiple of a
// tile, kernels larger than the image, and groups of pixels that end within a row.
var convolutions = []convolution{
	{3, 2, 2, 5, 7, 32, 16}, {3, 2, 1, 8, 8, 33, 3}, {3, 2, 2, 4, 4, 64, 37}, {3, 2, 1, 1, 1, 8, 9}, {3, 2, 3, 11, 13, 5, 2},
	{3, 1, 2, 6, 5, 32, 92}, {1, 1, 2, 6, 5, 32, 92}, {1, 1, 3, 4, 4, 1, 32}, {3, 1, 1, 3, 3, 1, 3}, {5, 1, 1, 4, 9, 6, 7}, {7, 2, 1, 4, 3, 4, 4}, {1, 2, 1, 3, 3, 4, 5},
	{3, 2, 1, 16, 16, 70, 40},
	// GEMM and col2im: one piece and several.
	{3, 2, 2, 9, 5, 16, 3}, {3, 2, 1, 35, 24, 32, 1}, {3, 2, 1, 17, 9, 32, 2},
	// Winograd: for each stride one group of tiles, and several.
	{3, 2, 2, 4, 6, 64, 32}, {3, 2, 1, 14, 30, 64, 64}, {3, 1, 3, 6, 4, 32, 96}, {3, 2, 1, 2, 2, 32, 32}, {3, 1, 1, 22, 24, 32, 32}, {3, 2, 1, 30, 30, 32, 64},
}

// onEachSet runs a test with every instruction set that this processor supports.
func onEachSet(t *testing.T, f func(t *testing.T)) {
	best := kernels.Instructions()
	t.Cleanup(func() { kernels.UseInstructions(best) })
	for _, set := range kernels.InstructionSets() {
		t.Run(set, func(t *testing.T) {
			if !kernels.UseInstructions(set) {
				t.Skip("not supported by this processor")
			}
			f(t)
		})
	}
}

// near fails unless the relative difference of two tensors, in the L2 norm, is within rounding error.
func near(t *testing.T, what string, got []float32, want []float64) {
	t.Helper()
	difference, norm := 0.0, 1e-30
	for i, w := range want {
		difference += (float64(got[i]) - w) * (float64(got[i]) - w)
		norm += w * w
	}
	if d := math.Sqrt(difference / norm); !(d < 2e-6) {
		t.Errorf("%s: relative difference %.2g", what, d)
	}
}

func biased(n int, bias []float32) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = float64(bias[i%len(bias)])
	}
	return out
}

func rectified(sums []float64) []float64 {
	out := slices.Clone(sums)
	for i, v := range out {
		out[i] = max(v, 0)
	}
	return out
}

func finished(sums []float64, mask []float32) []float64 {
	for i := range sums {
		if sums[i] < 0 || !(mask[i] > 0) {
			sums[i] = 0
		}
	}
	return sums
}

func TestConv_MatchesDirectSumsWithItsGradients(t *testing.T) {
	onEachSet(t, func(t *testing.T) {
		for _, c := range convolutions {
			t.Run(c.String(), func(t *testing.T) {
				r := rand.New(rand.NewPCG(1, 1))
				smallShape, largeShape := []int{c.n, c.h, c.w, c.small}, []int{c.n, c.h * c.stride, c.w * c.stride, c.large}
				small, large, kernel := random(r, smallShape...), random(r, largeShape...), random(r, c.small, c.large, c.kernel, c.kernel)
				toSmall, toLarge := random(r, smallShape...), random(r, largeShape...) // masks
				smallBias, largeBias := random(r, c.small), random(r, c.large)
				down, up := biased(len(small.data), smallBias.data), biased(len(large.data), largeBias.data)
				bare, derivative := make([]float64, len(small.data)), make([]float64, len(kernel.data))
				c.each(func(s, l, k int) {
					product := float64(large.data[l]) * float64(kernel.data[k])
					down[s] += product
					bare[s] += product
					up[l] += float64(small.data[s]) * float64(kernel.data[k])
					derivative[k] += float64(small.data[s]) * float64(large.data[l])
				})
				for _, threads := range []int{1, 2} {
					for fixed := range 2 {
						got, err := run(t, threads, kernels.Conv, c.layer(1, fixed), []operand{large, kernel, smallBias, toSmall}, smallShape...)
						if err != nil {
							t.Fatal(err)
						}
						near(t, "conv", got, finished(slices.Clone(down), toSmall.data))
						if got, err = run(t, threads, kernels.ConvTranspose, c.layer(1, fixed), []operand{small, kernel, largeBias, toLarge}, largeShape...); err != nil {
							t.Fatal(err)
						}
						near(t, "conv transpose", got, finished(slices.Clone(up), toLarge.data))
						if got, err = run(t, threads, kernels.ConvTranspose, c.layer(0, fixed), []operand{small, kernel, largeBias}, largeShape...); err != nil {
							t.Fatal(err)
						}
						near(t, "conv transpose without ReLU and mask", got, up)
						if got, err = run(t, threads, kernels.Conv, c.layer(1, fixed), []operand{large, kernel, smallBias}, smallShape...); err != nil {
							t.Fatal(err)
						}
						near(t, "conv without mask", got, rectified(down))
					}
				}
				got, err := run(t, 1, kernels.Conv, c.layer(0, 0), []operand{large, kernel}, smallShape...)
				if err != nil {
					t.Fatal(err)
				}
				near(t, "conv without bias, ReLU and mask", got, bare)
				if got, err = run(t, 1, kernels.ConvWeightGrad, c.attributes(), []operand{small, large}, kernel.shape...); err != nil {
					t.Fatal(err)
				}
				near(t, "weight gradient", got, derivative)
				sums := make([]float64, c.large)
				for i, v := range large.data {
					sums[i%c.large] += float64(v)
				}
				if got, err = run(t, 1, kernels.ChannelSum, nil, []operand{large}, c.large); err != nil {
					t.Fatal(err)
				}
				near(t, "channel sum", got, sums)
			})
		}
	})
}

// The score of an image must not depend on the processor.
func TestInstructions_WithFMAComputeTheSameBits(t *testing.T) {
	results := map[string][]float32{}
	onEachSet(t, func(t *testing.T) {
		var all []float32
		for _, c := range convolutions {
			r := rand.New(rand.NewPCG(2, 2))
			large, kernel := random(r, c.n, c.h*c.stride, c.w*c.stride, c.large), random(r, c.small, c.large, c.kernel, c.kernel)
			small, err := run(t, 2, kernels.Conv, c.layer(0, 0), []operand{large, kernel, random(r, c.small)}, c.n, c.h, c.w, c.small)
			if err != nil {
				t.Fatal(err)
			}
			up, err := run(t, 2, kernels.ConvTranspose, c.layer(0, 0), []operand{{[]int{c.n, c.h, c.w, c.small}, small}, kernel}, large.shape...)
			if err != nil {
				t.Fatal(err)
			}
			derivative, err := run(t, 2, kernels.ConvWeightGrad, c.attributes(), []operand{{[]int{c.n, c.h, c.w, c.small}, small}, large}, kernel.shape...)
			if err != nil {
				t.Fatal(err)
			}
			all = slices.Concat(all, small, up, derivative)
		}
		r := rand.New(rand.NewPCG(2, 3))
		errors, err := run(t, 2, kernels.SigmoidMSE, nil, []operand{random(r, 2, 61, 53, 3), random(r, 2, 61, 53, 3)}, 2)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, errors...)
		results[kernels.Instructions()] = all
	})
	a, b := results["AVX2"], results["AVX-512"]
	if a == nil || b == nil {
		t.Skip("this processor does not support both AVX2 and AVX-512")
	}
	if !slices.Equal(a, b) {
		t.Error("AVX2 and AVX-512 compute different bits")
	}
}

func TestChannelsLast_TransposesImages(t *testing.T) {
	// Few pixels, and several pieces that end within a row.
	for _, c := range []struct{ channels, h, w int }{{19, 5, 7}, {3, 5, 7}, {3, 67, 70}, {5, 67, 70}} {
		x := random(rand.New(rand.NewPCG(3, 3)), 2, c.channels, c.h, c.w)
		for _, threads := range []int{1, 2} {
			got, err := run(t, threads, kernels.ChannelsLast, nil, []operand{x}, 2, c.h, c.w, c.channels)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range got {
				channel, pixel, n := i%c.channels, i/c.channels%(c.h*c.w), i/c.channels/c.h/c.w
				if want := x.data[(n*c.channels+channel)*c.h*c.w+pixel]; v != want {
					t.Fatalf("%+v: element %d is %v, expected %v", c, i, v, want)
				}
			}
		}
	}
}

func TestSigmoidMSE_MatchesFloat64(t *testing.T) {
	onEachSet(t, func(t *testing.T) {
		// Less than a vector, more than one, and several pieces.
		for _, shape := range [][]int{{3, 1, 1, 3}, {2, 5, 7, 3}, {2, 61, 53, 3}} {
			r := rand.New(rand.NewPCG(7, 7))
			x, image := random(r, shape...), random(r, shape...)
			for i := range x.data {
				x.data[i] *= float32(math.Pow(10, float64(i%4))) // up to 1000, where a sigmoid is 0 or 1
				image.data[i] = (image.data[i] + 1) / 2
			}
			per := shape[1] * shape[2] * shape[3]
			want := make([]float64, shape[0])
			for i, v := range x.data {
				d := 1/(1+math.Exp(-float64(v))) - float64(image.data[i])
				want[i/per] += d * d / float64(per)
			}
			one, err := run(t, 1, kernels.SigmoidMSE, nil, []operand{x, image}, shape[0])
			if err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprint("errors of ", shape), one, want)
			two, err := run(t, 2, kernels.SigmoidMSE, nil, []operand{x, image}, shape[0])
			if err != nil || !slices.Equal(one, two) {
				t.Errorf("%v: two threads compute %v, one %v (%v)", shape, two, one, err)
			}
		}
	})
}

func TestSigmoidMSE_IsAccurateForSingleNumbers(t *testing.T) {
	onEachSet(t, func(t *testing.T) {
		for x := float32(-100); x <= 100; x += 0.37 {
			want := 1 / (1 + math.Exp(-float64(x)))
			got, err := run(t, 1, kernels.SigmoidMSE, nil, []operand{{[]int{1, 1, 1, 1}, []float32{x}}, {[]int{1, 1, 1, 1}, []float32{0}}}, 1)
			if err != nil {
				t.Fatal(err)
			}
			if d := math.Abs(math.Sqrt(float64(got[0])) - want); d > 2e-7*want+1e-19 {
				t.Errorf("the sigmoid of %v is %v, expected %v", x, math.Sqrt(float64(got[0])), want)
			}
		}
	})
}

// Models whose results are NaN are rejected, so NaN must propagate.
func TestSigmoidMSE_PropagatesNaN(t *testing.T) {
	onEachSet(t, func(t *testing.T) {
		for at := range 20 {
			x := operand{[]int{1, 1, 20, 1}, make([]float32, 20)}
			x.data[at] = float32(math.NaN())
			got, err := run(t, 1, kernels.SigmoidMSE, nil, []operand{x, {x.shape, make([]float32, 20)}}, 1)
			if err != nil || got[0] == got[0] {
				t.Errorf("the error of an image with NaN at %d is %v (%v)", at, got, err)
			}
		}
	})
}

func TestResizeConcat_InterpolatesBetweenPixelCentres(t *testing.T) {
	onEachSet(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(4, 4))
		images := []operand{random(r, 2, 3, 12, 12), random(r, 2, 18, 6, 6), random(r, 2, 5, 3, 3), random(r, 2, 1, 1, 1)}
		const side, channels = 12, 27
		got, err := run(t, 1, kernels.ResizeConcat, nil, images, 2, side, side, channels)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]float64, len(got))
		between := func(i, n int) (low, high int, share float64) {
			at := max((float64(i)+0.5)*float64(n)/side-0.5, 0)
			low = min(int(at), n-1)
			return low, min(low+1, n-1), at - float64(low)
		}
		first := 0
		for _, x := range images {
			c, n := x.shape[1], x.shape[2]
			for i := range 2 * side * side * c {
				k, y, col, image := i%c, i/c/side%side, i/c%side, i/c/side/side
				top, bottom, below := between(y, n)
				left, right, beside := between(col, n)
				at := func(y, x2 int) float64 { return float64(x.data[((image*c+k)*n+y)*n+x2]) }
				want[((image*side+y)*side+col)*channels+first+k] = (at(top, left)*(1-beside)+at(top, right)*beside)*(1-below) +
					(at(bottom, left)*(1-beside)+at(bottom, right)*beside)*below
			}
			first += c
		}
		near(t, "resized images", got, want)
	})
}

// A mistake in a graph must be an error, not a crash.
func TestOperators_RejectMismatchedOperands(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	half := map[string]int{"kernel": 3, "stride": 2, "padding": 1, "rectify": 0, "fixed": 0}
	window := map[string]int{"kernel": 3, "stride": 2, "padding": 1}
	image, kernel := random(r, 1, 8, 8, 4), random(r, 6, 4, 3, 3)
	for name, c := range map[string]struct {
		op         string
		attributes map[string]int
		in         []operand
	}{
		"channels":            {kernels.Conv, half, []operand{random(r, 1, 8, 8, 5), kernel}},
		"an odd side":         {kernels.Conv, half, []operand{random(r, 1, 7, 8, 4), kernel}},
		"another kernel":      {kernels.Conv, half, []operand{image, random(r, 6, 4, 5, 5)}},
		"bias":                {kernels.Conv, half, []operand{image, kernel, random(r, 5)}},
		"mask":                {kernels.Conv, half, []operand{image, kernel, {}, random(r, 1, 4, 4, 5)}},
		"three dimensions":    {kernels.Conv, half, []operand{random(r, 8, 8, 4), kernel}},
		"transposed":          {kernels.ConvTranspose, half, []operand{image, kernel}},
		"stride 3":            {kernels.Conv, map[string]int{"kernel": 3, "stride": 3, "padding": 1, "rectify": 0, "fixed": 0}, []operand{image, kernel}},
		"images of two sizes": {kernels.ConvWeightGrad, window, []operand{random(r, 1, 3, 4, 6), image}},
		"sides to resize":     {kernels.ResizeConcat, nil, []operand{random(r, 1, 2, 8, 8), random(r, 1, 2, 3, 3)}},
		"not square":          {kernels.ResizeConcat, nil, []operand{random(r, 1, 2, 8, 4)}},
		"two shapes":          {kernels.SigmoidMSE, nil, []operand{image, random(r, 1, 8, 8, 3)}},
		"a vector":            {kernels.ChannelsLast, nil, []operand{random(r, 8)}},
	} {
		_, err := run(t, 1, c.op, c.attributes, c.in, 1, 4, 4, 6)
		if err == nil || !strings.Contains(err.Error(), c.op) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Weights are packed once per version, and must be packed again when the version changes.
func TestConv_RepacksWeightsOfANewVersion(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	for _, c := range []convolution{{3, 2, 1, 4, 4, 5, 4}, {3, 1, 1, 4, 4, 32, 32}} {
		a := c.layer(0, 0)
		large := random(r, c.n, c.h*c.stride, c.w*c.stride, c.large)
		first, second := random(r, c.small, c.large, 3, 3), random(r, c.small, c.large, 3, 3)
		shape := []int{c.n, c.h, c.w, c.small}
		want := map[int][]float32{}
		for i, kernel := range []operand{first, second} {
			out, err := run(t, 1, kernels.Conv, a, []operand{large, kernel}, shape...)
			if err != nil {
				t.Fatal(err)
			}
			want[i] = out
		}
		s, in, out := session(t, 1, kernels.Conv, a, []operand{large, first, {}, {}, {[]int{1}, []float32{7}}}, shape...)
		kernel, version := in[1].Data(), in[2].Data()
		for i, pass := range []struct {
			kernel  []float32
			version float32
			want    []float32
		}{
			{first.data, 7, want[0]}, {first.data, 7, want[0]}, {second.data, 8, want[1]}, {first.data, 9, want[0]},
			{second.data, 9, want[0]}, // the unchanged version selects the weights before
		} {
			copy(kernel, pass.kernel)
			version[0] = pass.version
			if err := s.Run(t.Context(), in, []*ort.Tensor{out}); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(out.Data(), pass.want) {
				t.Errorf("%v: run %d used other weights", c, i)
			}
		}
	}
}
