package exporter

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

func TestExportedModels_AreStandardONNXWithDecision(t *testing.T) {
	for name, c := range map[string]struct {
		lower           func(*models.Model) ([]byte, error)
		opset           int64
		inputs, outputs string
	}{
		"tensor": {InferenceModel, Opset, "image FLOAT [N 3 16 16]", "reconstruction FLOAT [N 3 16 16], reconstruction_error FLOAT [N]"},
		"image": {ImageModel, 18, "image UINT8 [height width 3]",
			"reconstruction_error FLOAT [1], is_anomaly BOOL [1], anomaly_map FLOAT [16 16]"},
	} {
		t.Run(name, func(t *testing.T) {
			m := parsed(t, c.lower, sample())
			for _, n := range m.GetGraph().GetNode() {
				if n.GetDomain() != "" {
					t.Errorf("%s has the domain %q", n.GetOpType(), n.GetDomain())
				}
			}
			if len(m.GetOpsetImport()) != 1 || m.GetOpsetImport()[0].GetVersion() != c.opset {
				t.Errorf("got operator sets %v", m.GetOpsetImport())
			}
			if got := described(t, m.GetGraph().GetInput()); got != c.inputs {
				t.Errorf("inputs %s", got)
			}
			if got := described(t, m.GetGraph().GetOutput()); got != c.outputs {
				t.Errorf("outputs %s", got)
			}
			props := map[string]string{}
			for _, p := range m.GetMetadataProps() {
				props[p.GetKey()] = p.GetValue()
			}
			for key, want := range map[string]string{
				"model_type": "autoencoder", "format_version": "1", "image_size": "16", "threshold": "0.125", "class_names": `["gut","schlecht"]`,
				"preprocessing": `{"color_mode":"RGB","resize":"pillow-bilinear","scale":0.00392156862745098,"layout":"NCHW","orientation":"exif"}`,
				"training":      `{"level":1,"epochs":2,"batch_size":16,"learning_rate":0.001,"seed":0,"images":7,"skipped":0}`,
			} {
				if props[key] != want {
					t.Errorf("%s is %s, want %s", key, props[key], want)
				}
			}
			var whole models.Metadata
			if err := json.Unmarshal([]byte(props["metadata_json"]), &whole); err != nil || !reflect.DeepEqual(whole, sample().Metadata) {
				t.Errorf("metadata_json %v: %+v", err, whole)
			}
		})
	}
}

func TestInferenceModel_AcceptsAnyNumberOfImages(t *testing.T) {
	m := sample()
	b, err := InferenceModel(m)
	if err != nil {
		t.Fatal(err)
	}
	s, err := orttest.Open(t).NewSession(b, []string{"image"}, []string{"reconstruction", "reconstruction_error"}, ort.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := rand.New(rand.NewPCG(9, 9))
	pixels := randomValues(r, []int{3, 3, 16, 16}, 0, 1)
	alone := make([]float32, 3)
	for n := 1; n <= 3; n++ {
		image, _ := ort.NewTensor(n, 3, 16, 16)
		rebuilt, _ := ort.NewTensor(n, 3, 16, 16)
		errs, _ := ort.NewTensor(n)
		copy(image.Data(), pixels)
		if err := s.Run(t.Context(), []*ort.Tensor{image}, []*ort.Tensor{rebuilt, errs}); err != nil {
			t.Fatal(err)
		}
		for i, e := range errs.Data() {
			sum := 0.0
			for j := range 768 {
				d := float64(rebuilt.Data()[i*768+j]) - float64(pixels[i*768+j])
				sum += d * d
			}
			if want := sum / 768; math.Abs(float64(e)-want) > 1e-6*want {
				t.Errorf("image %d of %d: error %v, want that of the reconstruction, %v", i, n, e, want)
			}
			if n == i+1 {
				alone[i] = e
			} else if math.Abs(float64(e-alone[i])) > 1e-6 {
				t.Errorf("image %d of %d: error %v, want %v", i, n, e, alone[i])
			}
		}
		image.Close()
		rebuilt.Close()
		errs.Close()
	}
}

func TestLower_RejectsModelOfAnotherNetwork(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(m *models.Model)
		text string
	}{
		{"another image size", func(m *models.Model) { m.ImageSize = 32 }, "32×32"},
		{"missing weight", func(m *models.Model) { m.Weights = m.Weights[1:] }, "8 parameters, the model 7"},
		{"weights in another order", func(m *models.Model) { m.Weights[0], m.Weights[2] = m.Weights[2], m.Weights[0] }, "encoder.2.weight"},
		{"weights of another width", func(m *models.Model) { m.Weights[1].Shape = []int{5} }, "encoder.0.bias of shape [5]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := sample()
			f, err := network.Autoencoder(m.Architecture, 2, m.ImageSize, m.ImageSize)
			if err != nil {
				t.Fatal(err)
			}
			c.edit(m)
			if data, err := Lower(f, m); err == nil || data != nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want an error with %q", err, c.text)
			}
		})
	}
}

func TestLower_IgnoresBatchSizeOfNetwork(t *testing.T) {
	want, err := InferenceModel(sample())
	if err != nil {
		t.Fatal(err)
	}
	f, err := network.Autoencoder(sample().Architecture, 5, 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Lower(f, sample()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %v and %d bytes, want the %d bytes of InferenceModel", err, len(got), len(want))
	}
}
