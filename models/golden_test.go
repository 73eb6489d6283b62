package models

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// goldens is the output folder of testdata/golden/make_checkpoints.py.
const goldens = "../testdata/golden/checkpoints"

func golden(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(goldens, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// expectation is PyTorch's description of a file.
type expectation struct {
	ImageSize int `json:"image_size"`
	Tensors   map[string]struct {
		Shape    []int              `json:"shape"`
		Sum      float64            `json:"sum"`
		Elements map[string]float32 `json:"elements"`
	} `json:"tensors"`
}

func expectations(t testing.TB) map[string]expectation {
	t.Helper()
	var all map[string]expectation
	if err := json.Unmarshal(golden(t, "expected.json"), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRead_ReturnsPyTorchWeights(t *testing.T) {
	all := expectations(t)
	if len(all) < 14 {
		t.Fatalf("expected.json lists %d files", len(all))
	}
	for name, want := range all {
		t.Run(name, func(t *testing.T) {
			data := golden(t, name)
			m, err := Read(data, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if m.ImageSize != want.ImageSize || m.Metadata.ImageSize != want.ImageSize {
				t.Errorf("image size %d, in the metadata %d, want %d", m.ImageSize, m.Metadata.ImageSize, want.ImageSize)
			}
			if got := m.Architecture.String(); got != "3-4-8-12-16" {
				t.Errorf("architecture %s", got)
			}
			if format := Format(strings.TrimPrefix(filepath.Ext(name), ".")); m.Format != format || m.SHA256 != Identity(data) {
				t.Errorf("format %s, identity %s", m.Format, m.SHA256)
			}
			if len(m.Weights) != len(want.Tensors) {
				t.Fatalf("%d tensors, want %d", len(m.Weights), len(want.Tensors))
			}
			for i, p := range m.Architecture.Parameters() {
				w := m.Weights[i]
				e := want.Tensors[w.Name]
				if w.Name != p.Name || !reflect.DeepEqual(w.Shape, e.Shape) || len(w.Data) != p.Size() {
					t.Fatalf("%s %v of %d elements, want %s %v", w.Name, w.Shape, len(w.Data), p.Name, e.Shape)
				}
				sum := 0.0
				for _, v := range w.Data {
					sum += float64(v)
				}
				if math.Abs(sum-e.Sum) > 1e-9*max(1, math.Abs(e.Sum)) {
					t.Errorf("%s sums to %v, want %v", w.Name, sum, e.Sum)
				}
				for at, v := range e.Elements {
					if j, _ := strconv.Atoi(at); w.Data[j] != v {
						t.Errorf("%s[%d] is %v, want %v", w.Name, j, w.Data[j], v)
					}
				}
			}
		})
	}
}

func TestRead_UsesCheckpointConfig(t *testing.T) {
	m, err := Read(golden(t, "threshold.pt"), DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	want := Metadata{ModelType: ModelType, ImageSize: 64, Threshold: 0.0375, MeanError: 0.02, StdError: 0.01,
		ClassNames: []string{"normal", "Blähung"}, FormatVersion: 1}
	if !reflect.DeepEqual(m.Metadata, want) {
		t.Errorf("metadata %+v, want %+v", m.Metadata, want)
	}
}

func TestRead_UsesDefaultThresholdForPythonServiceModels(t *testing.T) {
	for _, name := range []string{"service.pt", "service.onnx", "bare.pt", "resumable.pt"} {
		m, err := Read(golden(t, name), Limits{})
		if err != nil {
			t.Fatal(name, err)
		}
		if m.Metadata.Threshold != DefaultThreshold || m.Metadata.ClassNames != nil || !reflect.DeepEqual(m.Metadata.Classes(), GenericClassNames()) {
			t.Errorf("%s: metadata %+v", name, m.Metadata)
		}
	}
}

func TestRead_RejectsOtherPyTorchFilesWithHint(t *testing.T) {
	for _, c := range []struct {
		file string
		want error
		hint string
	}{
		{"legacy.pt", ErrFormat, `torch.save(torch.load("old.pt", weights_only=True), "new.pt")`},
		{"torchscript.pt", ErrFormat, "torch.jit.load(f).state_dict()"},
		{"module.pt", ErrUnsafe, "save model.state_dict(), not the model"},
		{"foreign.pt", ErrArchitecture, "expected encoder.0.weight"},
	} {
		_, err := Read(golden(t, c.file), Limits{})
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%s: %v, want %v with %q", c.file, err, c.want, c.hint)
		}
	}
}

func TestLimits_BoundParametersAndBytes(t *testing.T) {
	a := DefaultArchitecture()
	if err := (Limits{MaxParameters: 776_579}).checkParameters(a); err != nil {
		t.Error(err)
	}
	if err := (Limits{MaxParameters: 776_578}).checkParameters(a); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	for _, name := range []string{"service.pt", "service.onnx"} {
		if _, err := Read(golden(t, name), Limits{MaxParameters: 5000}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Read(golden(t, name), Limits{MaxBytes: 5000}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(golden(t, "service.pt"), Limits{MaxUnpacked: 5000}); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}
