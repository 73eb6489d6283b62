package exporter

import (
	"bytes"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

func TestWriteBundle_IsDeterministic(t *testing.T) {
	var first []byte
	for range 3 {
		var b bytes.Buffer
		if err := WriteBundle(&b, sample()); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b.Bytes()
		} else if !bytes.Equal(first, b.Bytes()) {
			t.Fatal("two bundles of one model differ")
		}
	}
}

func TestWriteBundle_RoundTrips(t *testing.T) {
	m := sample()
	var b bytes.Buffer
	if err := WriteBundle(&b, m); err != nil {
		t.Fatal(err)
	}
	onnxFile, err := InferenceModel(m)
	if err != nil {
		t.Fatal(err)
	}
	var checkpoint bytes.Buffer
	if err := WriteCheckpoint(&checkpoint, m); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"zip": b.Bytes(), "onnx": onnxFile, "pt": checkpoint.Bytes()} {
		got, err := models.Read(data, models.DefaultLimits())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if string(got.Format) != name || got.SHA256 != models.Identity(data) || got.ImageSize != 16 || !got.Architecture.Equal(m.Architecture) {
			t.Errorf("%s: %s of %s at %d", name, got.Format, got.Architecture, got.ImageSize)
		}
		if got.Metadata.Threshold != 0.125 || got.Metadata.MeanError != 0.1 || strings.Join(got.Metadata.ClassNames, " ") != "gut schlecht" || got.Metadata.Training == nil {
			t.Errorf("%s: metadata %+v", name, got.Metadata)
		}
		for i, w := range m.Weights {
			if got.Weights[i].Name != w.Name || relativeError(got.Weights[i].Data, w.Data) != 0 {
				t.Errorf("%s: %s differs", name, w.Name)
			}
		}
	}
}
