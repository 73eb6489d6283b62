package kernels_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/kernels"
)

// inverted is a case: n result images of h×w pixels, and the channels of a block. Its depthwise
// convolution has TensorFlow's SAME padding.
type inverted struct {
	kernel, stride, n, h, w, in, hidden, out int
	expand, residual                         bool
}

func (c inverted) String() string {
	return fmt.Sprintf("%d×%d stride %d, %d×%d×%d, channels %d, %d, %d", c.kernel, c.kernel, c.stride, c.n, c.h, c.w, c.in, c.hidden, c.out)
}

// inverteds covers channel groups of whole, narrow and partial tiles, more and fewer pixels than a
// tile, one strip of rows and several, and every kernel and stride.
var inverteds = []inverted{
	{3, 1, 1, 6, 9, 24, 96, 24, true, true}, {3, 2, 2, 5, 7, 16, 48, 24, true, false}, {5, 1, 2, 4, 11, 8, 40, 8, true, true},
	{5, 2, 1, 8, 8, 24, 144, 40, true, false}, {3, 1, 2, 9, 10, 32, 32, 16, false, false}, {3, 1, 1, 2, 2, 5, 30, 5, true, true},
	{5, 1, 1, 1, 1, 3, 7, 4, true, false}, {5, 2, 1, 1, 3, 3, 18, 2, true, false}, {3, 1, 1, 70, 66, 8, 33, 8, true, true},
	{3, 2, 1, 40, 64, 4, 24, 9, true, false}, {3, 1, 1, 3, 5, 7, 7, 7, false, true}, {5, 1, 1, 16, 16, 40, 240, 40, true, true},
}

func (c inverted) operands(r *rand.Rand) []operand {
	in := []operand{random(r, c.n, c.h*c.stride, c.w*c.stride, c.in), random(r, c.hidden, 1, c.kernel, c.kernel), random(r, c.hidden),
		random(r, c.out, c.hidden, 1, 1), random(r, c.out)}
	if c.expand {
		in = append(in, random(r, c.hidden, c.in, 1, 1), random(r, c.hidden))
	}
	for i := range in[1].data {
		in[1].data[i] *= 4 // so that some results are above 6
	}
	return in
}

func (c inverted) attributes(fixed int) map[string]int {
	residual := 0
	if c.residual {
		residual = 1
	}
	return map[string]int{"kernel": c.kernel, "stride": c.stride, "padding": (c.kernel - c.stride) / 2, "residual": residual, "fixed": fixed}
}

// want returns the block's result, computed in float64.
func (c inverted) want(in []operand) []float64 {
	six := func(v float64) float64 { return min(max(v, 0), 6) }
	x, depthwise, depthwiseBias, project, projectBias := in[0].data, in[1].data, in[2].data, in[3].data, in[4].data
	height, width, before := c.h*c.stride, c.w*c.stride, (c.kernel-c.stride)/2
	expanded := make([]float64, c.n*height*width*c.hidden)
	for i := range expanded {
		pixel, k := i/c.hidden, i%c.hidden
		if !c.expand {
			expanded[i] = float64(x[i])
			continue
		}
		sum := float64(in[6].data[k])
		for l := range c.in {
			sum += float64(x[pixel*c.in+l]) * float64(in[5].data[k*c.in+l])
		}
		expanded[i] = six(sum)
	}
	hidden := make([]float64, c.n*c.h*c.w*c.hidden)
	for i := range hidden {
		k, col, row, n := i%c.hidden, i/c.hidden%c.w, i/c.hidden/c.w%c.h, i/c.hidden/c.w/c.h
		sum := float64(depthwiseBias[k])
		for tap := range c.kernel * c.kernel {
			y, x := row*c.stride-before+tap/c.kernel, col*c.stride-before+tap%c.kernel
			if y >= 0 && x >= 0 && y < height && x < width {
				sum += expanded[((n*height+y)*width+x)*c.hidden+k] * float64(depthwise[k*c.kernel*c.kernel+tap])
			}
		}
		hidden[i] = six(sum)
	}
	out := make([]float64, c.n*c.h*c.w*c.out)
	for i := range out {
		pixel, k := i/c.out, i%c.out
		out[i] = float64(projectBias[k])
		for l := range c.hidden {
			out[i] += hidden[pixel*c.hidden+l] * float64(project[k*c.hidden+l])
		}
		if c.residual {
			out[i] += float64(x[i])
		}
	}
	return out
}

func TestInvertedResidual_MatchesFloat64(t *testing.T) {
	results := map[string][]float32{}
	onEachSet(t, func(t *testing.T) {
		var all []float32
		for _, c := range inverteds {
			t.Run(c.String(), func(t *testing.T) {
				in := c.operands(rand.New(rand.NewPCG(8, 8)))
				want := c.want(in)
				var first []float32
				for _, threads := range []int{1, 2, 3} {
					for fixed := range 2 {
						got, err := run(t, threads, kernels.InvertedResidual, c.attributes(fixed), in, c.n, c.h, c.w, c.out)
						if err != nil {
							t.Fatal(err)
						}
						near(t, "the block's result", got, want)
						if first == nil {
							first = got
						}
						if !slices.Equal(got, first) {
							t.Errorf("%d threads compute other bits than one", threads)
						}
					}
				}
				all = append(all, first...)
			})
		}
		results[kernels.Instructions()] = all
	})
	if a, b := results["AVX2"], results["AVX-512"]; a != nil && b != nil && !slices.Equal(a, b) {
		t.Error("AVX2 and AVX-512 compute different bits")
	}
}

// An image's result must not depend on the other images of its batch.
func TestInvertedResidual_IsIndependentOfTheBatch(t *testing.T) {
	c := inverteds[1]
	in := c.operands(rand.New(rand.NewPCG(9, 9)))
	both, err := run(t, 2, kernels.InvertedResidual, c.attributes(1), in, c.n, c.h, c.w, c.out)
	if err != nil {
		t.Fatal(err)
	}
	half := in[0].shape[1] * in[0].shape[2] * in[0].shape[3]
	in[0] = operand{[]int{1, c.h * c.stride, c.w * c.stride, c.in}, in[0].data[half:]}
	second, err := run(t, 2, kernels.InvertedResidual, c.attributes(1), in, 1, c.h, c.w, c.out)
	if err != nil || !slices.Equal(second, both[len(both)/2:]) {
		t.Errorf("the second image alone has other bits (%v)", err)
	}
}

func TestInvertedResidual_RejectsMismatchedOperands(t *testing.T) {
	c := inverteds[0]
	for name, change := range map[string]func(in []operand, a map[string]int) []operand{
		"another image": func(in []operand, _ map[string]int) []operand {
			in[0] = random(rand.New(rand.NewPCG(1, 1)), 1, 6, 9, 5)
			return in
		},
		"another kernel": func(in []operand, a map[string]int) []operand { a["kernel"] = 5; return in },
		"7×7": func(in []operand, a map[string]int) []operand {
			in[1].shape = []int{96, 1, 7, 7}
			a["kernel"] = 7
			in[1].data = make([]float32, 96*49)
			return in
		},
		"a bias too short":  func(in []operand, _ map[string]int) []operand { in[2] = operand{[]int{95}, in[2].data[:95]}; return in },
		"no expansion":      func(in []operand, _ map[string]int) []operand { return in[:5] },
		"half an expansion": func(in []operand, _ map[string]int) []operand { return in[:6] },
		"an odd side":       func(in []operand, a map[string]int) []operand { a["stride"], a["residual"] = 2, 0; return in },
		"a residual of another size": func(in []operand, _ map[string]int) []operand {
			in[3] = operand{[]int{23, 96, 1, 1}, in[3].data[:23*96]}
			in[4] = operand{[]int{23}, in[4].data[:23]}
			return in
		},
	} {
		a := c.attributes(0)
		in := change(c.operands(rand.New(rand.NewPCG(1, 1))), a)
		if _, err := run(t, 1, kernels.InvertedResidual, a, in, 1, 6, 9, 24); err == nil || !strings.Contains(err.Error(), kernels.InvertedResidual) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// If the total padding is odd, the surplus zeros are at the bottom and right.
func TestConv_PadsBottomAndRightMore(t *testing.T) {
	results := map[string][]float32{}
	onEachSet(t, func(t *testing.T) {
		var all []float32
		for _, c := range []convolution{{3, 2, 2, 5, 7, 32, 3}, {3, 2, 1, 8, 8, 64, 64}, {5, 2, 1, 4, 6, 20, 9}, {3, 2, 1, 1, 1, 8, 9}} {
			r := rand.New(rand.NewPCG(10, 10))
			large, kernel, bias := random(r, c.n, c.h*2, c.w*2, c.large), random(r, c.small, c.large, c.kernel, c.kernel), random(r, c.small)
			want := biased(c.n*c.h*c.w*c.small, bias.data)
			before := (c.kernel - c.stride) / 2
			c.eachFrom(before, func(s, l, k int) { want[s] += float64(large.data[l]) * float64(kernel.data[k]) })
			for i := range want {
				want[i] = min(max(want[i], 0), 6)
			}
			a := c.layer(kernels.RectifySix, 1)
			a["padding"] = before
			got, err := run(t, 2, kernels.Conv, a, []operand{large, kernel, bias}, c.n, c.h, c.w, c.small)
			if err != nil {
				t.Fatal(err)
			}
			near(t, c.String(), got, want)
			all = append(all, got...)
		}
		results[kernels.Instructions()] = all
	})
	if a, b := results["AVX2"], results["AVX-512"]; a != nil && b != nil && !slices.Equal(a, b) {
		t.Error("AVX2 and AVX-512 compute different bits")
	}
}

// The Winograd algorithms do not support ReLU6; other algorithms must be used for it.
func TestConv_AppliesReLU6(t *testing.T) {
	onEachSet(t, func(t *testing.T) {
		for _, c := range convolutions {
			r := rand.New(rand.NewPCG(11, 11))
			small, large, kernel := random(r, c.n, c.h, c.w, c.small), random(r, c.n, c.h*c.stride, c.w*c.stride, c.large), random(r, c.small, c.large, c.kernel, c.kernel)
			down, up := make([]float64, len(small.data)), make([]float64, len(large.data))
			c.each(func(s, l, k int) {
				down[s] += float64(large.data[l]) * float64(kernel.data[k])
				up[l] += float64(small.data[s]) * float64(kernel.data[k])
			})
			for _, sums := range [][]float64{down, up} {
				for i := range sums {
					sums[i] = min(max(sums[i], 0), 6)
				}
			}
			got, err := run(t, 2, kernels.Conv, c.layer(kernels.RectifySix, 1), []operand{large, kernel}, small.shape...)
			if err != nil {
				t.Fatal(err)
			}
			near(t, "conv, "+c.String(), got, down)
			if got, err = run(t, 2, kernels.ConvTranspose, c.layer(kernels.RectifySix, 1), []operand{small, kernel}, large.shape...); err != nil {
				t.Fatal(err)
			}
			near(t, "conv transpose, "+c.String(), got, up)
		}
	})
}

func TestNormalize_ScalesAndTransposesImages(t *testing.T) {
	for _, channels := range []int{3, 5} {
		x := random(rand.New(rand.NewPCG(12, 12)), 2, channels, 67, 70)
		got, err := runNumbers(t, 2, kernels.Normalize, map[string]float32{"mean": 0.25, "scale": 2}, []operand{x}, 2, 67, 70, channels)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range got {
			k, pixel, n := i%channels, i/channels%(67*70), i/channels/67/70
			if want := (x.data[(n*channels+k)*67*70+pixel] - 0.25) * 2; v != want {
				t.Fatalf("%d channels: element %d is %v, expected %v", channels, i, v, want)
			}
		}
	}
}
