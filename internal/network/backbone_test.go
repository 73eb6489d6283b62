package network

import (
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/backbone"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// At a stride of 2 and even sides, TensorFlow's SAME pads 0 rows above and 1 below
// for 3×3, and 1 above and 2 below for 5×5.
func TestSame_DividesSidesByTheStride(t *testing.T) {
	for _, c := range []struct{ kernel, stride, before, surplus int }{{1, 1, 0, 0}, {3, 1, 1, 0}, {5, 1, 2, 0}, {3, 2, 0, 1}, {5, 2, 1, 1}} {
		w := Same(c.kernel, c.stride)
		if w.Padding != c.before || w.Surplus != c.surplus {
			t.Errorf("%v: padding %d and surplus %d, expected %d and %d", w, w.Padding, w.Surplus, c.before, c.surplus)
		}
		for _, side := range []int{2, 8, 224} {
			if got := w.Down(side); got != side/c.stride {
				t.Errorf("%v: Down is %d for a side of %d", w, got, side)
			}
			if got := w.Up(side / c.stride); c.stride == 1 && got != side {
				t.Errorf("%v: Up(%d) is %d", w, side/c.stride, got)
			}
		}
	}
}

func TestConv2D_PadsTheSurplusAtTheLowerRight(t *testing.T) {
	x := newDense([]float32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, 1, 1, 4, 4)
	k := newDense([]float32{1, 0, 0, 0, 10, 0, 0, 0, 100}, 1, 1, 3, 3)
	b := newDense([]float32{0.5}, 1)
	want := []float32{1 + 60 + 1100 + 0.5, 3 + 80 + 0.5, 9 + 140 + 0.5, 11 + 160 + 0.5}
	for _, op := range []gorgonia.Op{Conv2D{Window: Same(3, 2)}, DepthwiseConv2D{Window: Same(3, 2)}} {
		y, err := op.Do(x, k, b)
		if err != nil {
			t.Fatal(err)
		}
		if got := y.Data().([]float32); !slices.Equal(got, want) {
			t.Errorf("%v: %v, expected %v", op, got, want)
		}
	}
}

func TestReLU6_ClampsValuesAndGradients(t *testing.T) {
	y, err := (ReLU6{}).Do(newDense([]float32{-1, 0, 3, 6, 7}, 1, 1, 1, 5))
	if err != nil {
		t.Fatal(err)
	}
	if got := y.Data().([]float32); !slices.Equal(got, []float32{0, 0, 3, 6, 6}) {
		t.Errorf("ReLU6: %v", got)
	}
	dx, err := (rectifierGrad[limitedBySix]{}).Do(y, newDense([]float32{1, 2, 3, 4, 5}, 1, 1, 1, 5))
	if err != nil {
		t.Fatal(err)
	}
	if got := dx.Data().([]float32); !slices.Equal(got, []float32{0, 0, 3, 0, 0}) {
		t.Errorf("gradient: %v", got)
	}
}

func TestFeatures_HaveTheShapesOfTheirTaps(t *testing.T) {
	for _, spec := range []backbone.Spec{backbone.Lite0(), backbone.Lite2()} {
		taps := []int{len(spec.Blocks) - 1, 0, 4}
		image, features, parameters, err := Features(2, 64, spec, taps)
		if err != nil {
			t.Fatal(err)
		}
		if !image.Shape().Eq(tensor.Shape{2, 3, 64, 64}) {
			t.Errorf("image of shape %v", image.Shape())
		}
		for i, f := range features {
			tap := spec.Tap(taps[i])
			if want := (tensor.Shape{2, tap.Channels, 64 / tap.Stride, 64 / tap.Stride}); !f.Shape().Eq(want) {
				t.Errorf("%s: block %d has shape %v, expected %v", spec.Name, taps[i], f.Shape(), want)
			}
		}
		for i, p := range spec.Parameters(taps[0]) {
			if got := parameters[i]; got.Name() != backbonePrefix+p.Name || !got.Shape().Eq(tensor.Shape(p.Shape)) {
				t.Errorf("%s: parameter %s of %v, expected %s of %v", spec.Name, got.Name(), got.Shape(), p.Name, p.Shape)
			}
		}
	}
}

func TestFeatures_RejectsInvalidSidesAndTaps(t *testing.T) {
	for _, c := range []struct {
		side int
		taps []int
	}{{48, []int{1}}, {0, []int{1}}, {64, nil}, {64, []int{-1}}, {64, []int{16}}} {
		if _, _, _, err := Features(1, c.side, backbone.Lite0(), c.taps); err == nil {
			t.Errorf("a side of %d and blocks %v: no error", c.side, c.taps)
		}
	}
}
