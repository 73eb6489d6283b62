package exporter

import (
	"archive/zip"
	"bytes"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/detectability"
	"github.com/deepmed/anomaly/models"
)

// detectableModel returns a model with models.Detectability.
func detectableModel() *models.Model {
	m := sample()
	m.Metadata.Detectability = &models.Detectability{
		Threshold: m.Metadata.Threshold, NormalImages: 46, FalseAlarms: 0.05, ImagesPerCell: 12,
		Diameters: []float64{4, 8}, Contrasts: []float64{8, 128}, Found: [][]float64{{0, 0.25}, {0.5, 1}},
		CutPaste: []float64{0, 0.5}, Blur: []float64{0, 0},
	}
	return m
}

// unpacked returns the files of a model's zip by name, and the zip.
func unpacked(t *testing.T, m *models.Model) (files map[string]string, whole []byte) {
	t.Helper()
	var b bytes.Buffer
	if err := WriteBundle(&b, m); err != nil {
		t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[f.Name] = string(data)
	}
	return files, b.Bytes()
}

func TestWriteBundle_ShowsDetectability(t *testing.T) {
	m := detectableModel()
	files, first := unpacked(t, m)
	if _, second := unpacked(t, m); !bytes.Equal(first, second) {
		t.Error("a second zip of the model has other bytes")
	}
	if svg := files[DetectabilityFile]; !strings.Contains(svg, "<svg") {
		t.Errorf("the plot is %.100q", svg)
	}
	readme := files["README.md"]
	for _, want := range []string{
		"## What would it find?\n\n", detectability.Caveat, "| 128 grey levels brighter or darker | 50 % | 100 % |\n", "| blurred | 0 % | 0 % |\n\n![", "](" + DetectabilityFile + ")\n\n## Files", "\n- `" + DetectabilityFile + "`: ",
	} {
		if !strings.Contains(readme, want) {
			t.Errorf("the README has no %q", want)
		}
	}
	if strings.Contains(readme, "threshold is now") {
		t.Error("the README has a note about another threshold")
	}
	for form, data := range map[string][]byte{"zip": first, "checkpoint": []byte(files[models.CheckpointFile]), "ONNX": []byte(files[models.ONNXFile])} {
		got, err := models.Read(data, models.DefaultLimits())
		if err != nil || !reflect.DeepEqual(got.Metadata.Detectability, m.Metadata.Detectability) {
			t.Errorf("%s: %+v, %v", form, got, err)
		}
	}

	m.Metadata.Detectability.Threshold *= 2
	files, _ = unpacked(t, m)
	if !strings.Contains(files["README.md"], "\n\nThe threshold is now 0.125, so the shares are different.\n\n![") {
		t.Error("the README has no note about the other threshold")
	}

	m.Metadata.Detectability = nil
	files, _ = unpacked(t, m)
	if _, ok := files[DetectabilityFile]; ok || strings.Contains(files["README.md"], "What would it find") || strings.Contains(files["README.md"], DetectabilityFile) {
		t.Error("the zip of a model without detectability shows it")
	}
}

func TestWriteBundle_RejectsInvalidDetectability(t *testing.T) {
	m := detectableModel()
	m.Metadata.Detectability.Found[0][0] = 2
	if err := WriteBundle(io.Discard, m); err == nil {
		t.Error("the error is nil")
	}
}
