package exporter

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// goldenSide is the side of the image of testdata/features.json.
const goldenSide = 64

// goldenTap has the features that PyTorch computes for that image at one tap.
type goldenTap struct {
	Block  int
	Shape  []int
	RMS    float64
	Every  int
	Values []float64
}

// readGoldenTaps reads testdata/features.json.
func readGoldenTaps(t testing.TB) (taps []goldenTap, blocks []int) {
	t.Helper()
	data, err := os.ReadFile("../internal/backbone/testdata/features.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &taps); err != nil {
		t.Fatal(err)
	}
	for _, tap := range taps {
		blocks = append(blocks, tap.Block)
	}
	return taps, blocks
}

// pattern returns the image of make_features.py with any side.
func pattern(side int) []float32 {
	x := make([]float32, 3*side*side)
	for i := range x {
		channel, row, col := float64(i/side/side), i/side%side, i%side
		step := -0.15
		if row+2*col > 90 {
			step = 0.15
		}
		x[i] = float32(0.5 + 0.3*math.Sin(0.2*float64(row)+channel)*math.Cos(0.13*float64(col)) + step)
	}
	return x
}

// check compares features with PyTorch's, relative to the tap's root mean square.
func (tap goldenTap) check(t *testing.T, got []float32) {
	t.Helper()
	worst := 0.0
	for i, want := range tap.Values {
		worst = max(worst, math.Abs(float64(got[i*tap.Every])-want)/tap.RMS)
	}
	if !(worst < 1e-5) {
		t.Errorf("block %d differs by %.2g of its root mean square", tap.Block, worst)
	}
}

func TestFeatures_OnGorgoniaMatchPyTorch(t *testing.T) {
	taps, blocks := readGoldenTaps(t)
	image, features, parameters, err := network.Features(1, goldenSide, backbone.Lite0(), blocks)
	if err != nil {
		t.Fatal(err)
	}
	weights, err := backbone.Weights(backbone.Lite0().Name)
	if err != nil {
		t.Fatal(err)
	}
	let := func(n *gorgonia.Node, data []float32) {
		if err := gorgonia.Let(n, tensor.New(tensor.WithShape(n.Shape()...), tensor.WithBacking(slices.Clone(data)))); err != nil {
			t.Fatal(err)
		}
	}
	let(image, pattern(goldenSide))
	for i, p := range parameters {
		let(p, weights[i].Data)
	}
	out := make([]gorgonia.Value, len(features))
	for i, n := range features {
		gorgonia.Read(n, &out[i])
	}
	m := gorgonia.NewTapeMachine(image.Graph())
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	for i, tap := range taps {
		tap.check(t, out[i].Data().([]float32))
	}
}

// runFeatures runs a backbone on images of side×side pixels.
func runFeatures(t testing.TB, with Operators, threads, side int, blocks []int, images []float32) [][]float32 {
	t.Helper()
	run, out := featuresSession(t, with, threads, side, blocks, images)
	run()
	data := make([][]float32, len(out))
	for i, x := range out {
		data[i] = x.Data()
	}
	return data
}

// featuresSession returns a function that runs a backbone, and its output tensors.
func featuresSession(t testing.TB, with Operators, threads, side int, blocks []int, images []float32) (run func(), out []*ort.Tensor) {
	t.Helper()
	m, err := FeaturesModel(side, backbone.Lite0(), blocks, with)
	if err != nil {
		t.Fatal(err)
	}
	s, err := orttest.OpenThreads(t, threads).NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Threads: threads, Kernels: m.Kernels, Spin: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	n := len(images) / (3 * side * side)
	in := orttest.Tensor(t, images, n, 3, side, side)
	for _, b := range blocks {
		tap := backbone.Lite0().Tap(b)
		out = append(out, orttest.Tensor(t, nil, n, tap.Channels, side/tap.Stride, side/tap.Stride))
	}
	return func() {
		if err := s.Run(t.Context(), []*ort.Tensor{in}, out); err != nil {
			t.Fatal(err)
		}
	}, out
}

func TestFeaturesModel_MatchesPyTorch(t *testing.T) {
	taps, blocks := readGoldenTaps(t)
	for name, with := range map[string]Operators{"ONNX's operators": Portable, "package kernels": Processor} {
		t.Run(name, func(t *testing.T) {
			got := runFeatures(t, with, 2, goldenSide, blocks, pattern(goldenSide))
			for i, tap := range taps {
				tap.check(t, got[i])
			}
		})
	}
}

func TestFeaturesModel_RejectsBackboneThatIsNotEmbedded(t *testing.T) {
	other := backbone.Lite0()
	if backbone.Embedded == other.Name {
		other = backbone.Lite2()
	}
	if _, err := FeaturesModel(64, other, []int{3}, Portable); !errors.Is(err, backbone.ErrNotEmbedded) {
		t.Errorf("%s: %v", other.Name, err)
	}
}

// An anomaly score must not depend on the machine or on other images.
func TestFeaturesModel_HasSameBitsForAnyThreadsAndBatch(t *testing.T) {
	blocks := []int{2, 4, 10, 12}
	for _, side := range []int{32, 96, 160} {
		first, second := pattern(side), pattern(side)
		for i := range second {
			second[i] = 1 - second[i]
		}
		alone := runFeatures(t, Processor, 1, side, blocks, second)
		both := runFeatures(t, Processor, 3, side, blocks, slices.Concat(first, second))
		portable := runFeatures(t, Portable, 2, side, blocks, second)
		for i, got := range alone {
			if !slices.Equal(got, both[i][len(got):]) {
				t.Errorf("%d px, block %d: different bits in a batch on three threads", side, blocks[i])
			}
			difference, norm := 0.0, 0.0
			for k, v := range got {
				d := float64(v) - float64(portable[i][k])
				difference += d * d
				norm += float64(v) * float64(v)
			}
			if d := math.Sqrt(difference / norm); !(d < 1e-5) {
				t.Errorf("%d px, block %d: differs from ONNX's operators by %.2g of its norm", side, blocks[i], d)
			}
		}
	}
}

func BenchmarkFeatures(b *testing.B) {
	for name, with := range map[string]Operators{"ONNX's operators": Portable, "package kernels": Processor} {
		b.Run(name, func(b *testing.B) {
			run, _ := featuresSession(b, with, 2, 256, []int{4, 10, 12}, pattern(256))
			for b.Loop() {
				run()
			}
		})
	}
}
