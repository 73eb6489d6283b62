package exporter

import (
	"bytes"
	"errors"
	"fmt"
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
)

// bankSize is the number of normal images in the bank of patchModel.
const bankSize = 5

// patchModel returns a small model with random reference statistics of patch features,
// whose scores have a usual magnitude.
func patchModel(side int, heads bool) *models.Model {
	m := sample()
	r := rand.New(rand.NewPCG(uint64(side), 6))
	m.ImageSize, m.Metadata.ImageSize = side, side
	m.Metadata.Decision = &models.Decision{Measure: models.MeasurePatchMahalanobis, Threshold: 1, Backbone: models.EmbeddedBackbone()}
	for _, p := range models.PatchParameters(models.Square(side), heads, bankSize) {
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
		m.Reference = append(m.Reference, models.Tensor{Name: p.Name, Shape: p.Shape, Data: randomValues(r, p.Shape, low, high)})
	}
	return m
}

// headVariants are models with and without defect heads.
var headVariants = map[string]bool{"heads": true, "no heads": false}

// runModel runs a model's ONNX file on images and returns the named outputs.
func runModel(t *testing.T, file []byte, kernels bool, threads, images int, pixels []float32, m *models.Model, names ...string) [][]float32 {
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

func servedModel(t *testing.T, m *models.Model, also Results, with Operators) *SessionModel {
	t.Helper()
	s, err := ServedModel(m, also, with)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPatchModel_MatchesGorgonia(t *testing.T) {
	// Gorgonia takes a second for an image of 128×128 pixels, so each has one side only.
	for name, side := range map[string]int{"heads": 64, "no heads": 16} {
		t.Run(name, func(t *testing.T) {
			m := patchModel(side, headVariants[name])
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
			want := runGorgonia(t, f.Graph, inputs, gorgonia.Nodes{j.Score, f.Error, j.Map, j.Members})
			got := runModel(t, inferenceFile(t, m), false, 1, 1, pixels, m, names[:3]...)
			for i, n := range names[:3] {
				requireClose(t, "file: "+n, got[i], want[i], 1e-5)
			}
			for with, operators := range bothOperators {
				s := servedModel(t, m, Results{Images: true, Members: true}, operators)
				got := runModel(t, s.ONNX, s.Kernels, 2, 1, pixels, m, names...)
				for i, n := range names {
					requireClose(t, with+": "+n, got[i], want[i], 1e-5)
				}
			}
			score, highest := want[0][0], slices.Max(want[2])
			if !(score > 0.05 && score < 50) || !(highest > 0) {
				t.Errorf("the score is %v and the map's maximum %v, want others for a useful comparison", score, highest)
			}
		})
	}
}

// The sides are those that models.BackboneInputOf treats differently: enlarged, with a
// border, both, and neither.
func TestPatchModel_IsLoweredForEverySide(t *testing.T) {
	for _, side := range []int{16, 48, 64, 144, 256} {
		m := patchModel(side, true)
		pixels := pattern(side)
		names := []string{network.ErrorName, network.MSEName, network.MapName, network.MembersName}
		want := runModel(t, inferenceFile(t, m), false, 2, 1, pixels, m, names[:3]...)
		s := servedModel(t, m, Results{Images: true, Members: true}, Processor)
		got := runModel(t, s.ONNX, s.Kernels, 2, 1, pixels, m, names...)
		for i, n := range names[:3] {
			requireClose(t, fmt.Sprintf("%d px: %s", side, n), got[i], want[i], 1e-5)
		}
		if !models.Finite(got[2]...) || slices.Min(got[2]) == slices.Max(got[2]) {
			t.Errorf("%d px: the map is constant or not finite", side)
		}
		in := models.BackboneInputOf(models.Square(side))
		if in.Size.W != side*in.Times+2*in.Border.W || in.Size.W%network.BackboneStride != 0 || in.Size.W < 128 {
			t.Errorf("%d px: %+v", side, in)
		}
	}
}

func TestImageModel_OfPatchModelIsStandardONNX(t *testing.T) {
	for name, heads := range headVariants {
		t.Run(name, func(t *testing.T) {
			const side = 32
			m := patchModel(side, heads)
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
					t.Errorf("%s has the domain %q", n.GetOpType(), n.GetDomain())
				}
			}
			props := map[string]string{}
			for _, p := range p.GetMetadataProps() {
				props[p.GetKey()] = p.GetValue()
			}
			if props["measure"] != models.MeasurePatchMahalanobis || props["threshold"] != "1" {
				t.Errorf("got the measure %s and the threshold %s", props["measure"], props["threshold"])
			}
		})
	}
}

// An anomaly score must not depend on the machine or on other images.
func TestPatchModel_HasSameBitsForAnyThreadsAndBatch(t *testing.T) {
	const side = 48
	m := patchModel(side, true)
	names := []string{network.ErrorName, network.MSEName, network.MembersName}
	r := rand.New(rand.NewPCG(1, 9))
	const all = 6
	pixels := randomValues(r, []int{all, 3, side, side}, 0, 1)
	one := len(pixels) / all
	for with, operators := range bothOperators {
		s := servedModel(t, m, Results{Members: true}, operators)
		var alone [all][][]float32
		for i := range alone {
			alone[i] = runModel(t, s.ONNX, s.Kernels, 1, 1, pixels[i*one:(i+1)*one], m, names...)
		}
		for _, c := range []struct{ threads, images int }{{1, 2}, {1, all}, {2, 1}, {2, 5}, {3, 3}, {3, all}} {
			got := runModel(t, s.ONNX, s.Kernels, c.threads, c.images, pixels[:c.images*one], m, names...)
			for i := range c.images {
				for k, name := range names {
					each := len(alone[i][k])
					if g := got[k][i*each : (i+1)*each]; !slices.Equal(g, alone[i][k]) {
						t.Errorf("%s: %s of image %d of %d on %d threads is %v, want %v as for the image alone", with, name, i, c.images, c.threads, g, alone[i][k])
					}
				}
			}
		}
	}
}

func TestPatchModel_RoundTripsThroughEveryFormat(t *testing.T) {
	for name, heads := range headVariants {
		t.Run(name, func(t *testing.T) { checkRoundTrip(t, patchModel(32, heads)) })
	}
}

func TestWriteCheckpoint_RejectsPatchModelThatDoesNotFitDecision(t *testing.T) {
	for name, edit := range map[string]func(m *models.Model){
		"no tensors":               func(m *models.Model) { m.Reference = nil },
		"missing tensor":           func(m *models.Model) { m.Reference = m.Reference[1:] },
		"another shape":            func(m *models.Model) { m.Reference[0].Shape = []int{1} },
		"not finite":               func(m *models.Model) { m.Reference[0].Data[3] = float32(math.Inf(1)) },
		"tensors, decides by mse":  func(m *models.Model) { m.Metadata.Decision = nil },
		"tensors of another image": func(m *models.Model) { m.Reference = patchModel(144, true).Reference },
		"no backbone":              func(m *models.Model) { m.Metadata.Decision.Backbone = nil },
	} {
		m := patchModel(32, true)
		edit(m)
		var b bytes.Buffer
		if err := WriteCheckpoint(&b, m); !errors.Is(err, ErrUnwritable) || b.Len() > 0 {
			t.Errorf("%s: %v, %d bytes written", name, err, b.Len())
		}
	}
}
