package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

func TestInspect_PrintsEveryFormatOfAModel(t *testing.T) {
	model := smallModel(t)
	dir := unpacked(t, model)
	for path, format := range map[string]string{
		model: "zip", filepath.Join(dir, "autoencoder.pt"): "pt", filepath.Join(dir, "autoencoder.onnx"): "onnx",
	} {
		sum := models.Identity(read(t, path))
		r := run(t, "inspect", path)
		for _, words := range []string{sum, "3-32-64-128-256", "776579", "32×32", "normal, anomaly", "60 images, 0 skipped"} {
			if r.status != exitNormal || !strings.Contains(r.stdout, words) {
				t.Errorf("%s: exit %d, without %q: %s%s", format, r.status, words, r.stdout, r.stderr)
			}
		}
		r = run(t, "inspect", "--json", path)
		var d struct {
			Format     string
			SHA256     string
			ImageSize  int `json:"image_size"`
			Parameters []struct {
				Name  string
				Shape []int
			}
			Metadata models.Metadata
		}
		if err := json.Unmarshal([]byte(r.stdout), &d); err != nil || r.status != exitNormal {
			t.Fatalf("%s: exit %d: %v: %s", format, r.status, err, r.stderr)
		}
		if d.Format != format || d.SHA256 != sum || d.ImageSize != 32 || len(d.Parameters) != 16 ||
			d.Parameters[0].Name != "encoder.0.weight" || d.Metadata.Threshold <= 0 || len(d.Metadata.TrainingLosses) != 5 {
			t.Errorf("%s: %+v", format, d)
		}
		if strings.Contains(r.stdout, `"Name"`) {
			t.Errorf("%s: a key starts with a capital", format)
		}
		if got := keys(t, r.stdout); got != "architecture format image_size metadata parameters sha256" {
			t.Errorf("%s: keys %s", format, got)
		}
	}
	run(t, "inspect", filepath.Join(dir, "README.md")).refused(t, "README.md", "not a readable model file")
	run(t, "inspect", "nowhere").refused(t, "nowhere")
}

// keys returns the keys of a JSON object, in order.
func keys(t *testing.T, object string) string {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(object), &m); err != nil {
		t.Fatal(err)
	}
	return strings.Join(slices.Sorted(maps.Keys(m)), " ")
}

func TestInspect_PrintsWidthAndHeightOfAnOblongInput(t *testing.T) {
	images, model := t.TempDir(), filepath.Join(t.TempDir(), "m.zip")
	for i := range 4 {
		write(t, images, fmt.Sprintf("%d.png", i), wavePNG(t, 80, 40, i, false, false))
	}
	if r := run(t, "train", images, "--level", "1", "--image-size", "64x32", "--quiet", "--out", model); r.status != exitNormal {
		t.Fatal(r.stderr)
	}
	dir := unpacked(t, model)
	for _, path := range []string{model, filepath.Join(dir, models.CheckpointFile), filepath.Join(dir, models.ONNXFile)} {
		r := run(t, "inspect", "--json", path)
		var d struct{ Width, Height int }
		if err := json.Unmarshal([]byte(r.stdout), &d); err != nil || r.status != exitNormal {
			t.Fatalf("%s: exit %d: %v: %s", path, r.status, err, r.stderr)
		}
		if got := keys(t, r.stdout); d.Width != 64 || d.Height != 32 || got != "architecture format height metadata parameters sha256 width" {
			t.Errorf("%s: %d×%d, keys %s", path, d.Width, d.Height, got)
		}
	}
}
