package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// pythonCheckpoint is a checkpoint of the Python service: it has no threshold and no
// class names.
const pythonCheckpoint = "../../testdata/golden/errors.pt"

func readBack(t *testing.T, path string) *models.Model {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := models.Read(data, models.DefaultLimits())
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return m
}

func TestConvert_KeepsWeightsAndDecisionThroughEveryFormat(t *testing.T) {
	dir := t.TempDir()
	metadata := filepath.Join(dir, "metadata.json")
	if err := os.WriteFile(metadata, []byte(`{"model_type":"autoencoder","image_size":256,"threshold":0.0625,"mean_error":0.05,"std_error":0.00625,"training_losses":[0.5,0.25],"class_names":["gut"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	want := readBack(t, pythonCheckpoint)
	from := pythonCheckpoint
	args := []string{"--metadata", metadata}
	for i, name := range []string{"a.onnx", "b.pt", "c.zip", "d.PT", "e.onnx"} {
		to := filepath.Join(dir, name)
		if r := run(t, append([]string{"convert", from, "--to", to}, args...)...); r.status != 0 || r.stdout != "" {
			t.Fatalf("%s: status %d: %s", name, r.status, r.stderr)
		}
		got := readBack(t, to)
		if got.Metadata.Threshold != 0.0625 || got.Metadata.MeanError != 0.05 || !slices.Equal(got.Metadata.ClassNames, []string{"gut"}) || got.ImageSize != want.ImageSize {
			t.Errorf("step %d, %s: %+v at %d", i, name, got.Metadata, got.ImageSize)
		}
		for j, w := range want.Weights {
			if !slices.Equal(got.Weights[j].Data, w.Data) {
				t.Errorf("step %d, %s: %s differs", i, name, w.Name)
			}
		}
		from, args = to, nil
	}
	first, err := os.ReadFile(filepath.Join(dir, "a.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	last, err := os.ReadFile(filepath.Join(dir, "e.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, last) {
		t.Error("the ONNX file has changed after all conversions")
	}
}

func TestConvert_WritesTheDefaultThresholdWithoutMetadata(t *testing.T) {
	to := filepath.Join(t.TempDir(), "a.onnx")
	if r := run(t, "convert", pythonCheckpoint, "--to", to); r.status != 0 {
		t.Fatalf("status %d: %s", r.status, r.stderr)
	}
	if m := readBack(t, to); m.Metadata.Threshold != models.DefaultThreshold {
		t.Errorf("threshold %v", m.Metadata.Threshold)
	}
}

func TestConvert_RejectsInOneSentence(t *testing.T) {
	dir := t.TempDir()
	exists := filepath.Join(dir, "exists.onnx")
	if err := os.WriteFile(exists, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"an unknown extension", []string{pythonCheckpoint, "--to", filepath.Join(dir, "a.h5")}, ".pt, .onnx or .zip"},
		{"a file that exists", []string{pythonCheckpoint, "--to", exists}, "--force"},
		{"no --to", []string{pythonCheckpoint}, "to"},
		{"no model", []string{"../../testdata/README.md", "--to", filepath.Join(dir, "a.onnx")}, "model"},
		{"metadata that is none", []string{pythonCheckpoint, "--metadata", exists, "--to", filepath.Join(dir, "a.onnx")}, "metadata"},
	} {
		r := run(t, append([]string{"convert"}, c.args...)...)
		if r.status != 2 || !strings.Contains(r.stderr, c.want) || strings.Count(strings.TrimSpace(r.stderr), "\n") > 0 {
			t.Errorf("%s: status %d: %s", c.name, r.status, r.stderr)
		}
	}
	if data, err := os.ReadFile(exists); err != nil || string(data) != "mine" {
		t.Errorf("the file that existed is %q, %v", data, err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("left over: %v", list)
	}
}
