package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// The colours depend on the threshold of the verdict, whether it comes from the model
// or from a metadata file.
func TestDetect_HeatmapUsesTheThresholdOfTheVerdict(t *testing.T) {
	model, image := smallModel(t), tileFiles(t, "test/crack", 1)[0]
	own := read(t, filepath.Join(unpacked(t, model), models.MetadataFile))
	var values map[string]any
	if err := json.Unmarshal(own, &values); err != nil {
		t.Fatal(err)
	}
	decision := values["decision"].(map[string]any)
	decision["threshold"] = decision["threshold"].(float64) / 8
	lower, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	draw := func(metadata ...string) []byte {
		t.Helper()
		dir := t.TempDir()
		r := run(t, append([]string{"detect", "--model", model, "--heatmap", dir, image}, metadata...)...)
		if r.status == exitError {
			t.Fatalf("exit %d: %s%s", r.status, r.stdout, r.stderr)
		}
		return read(t, filepath.Join(dir, "0001-"+filepath.Base(image)+".png"))
	}
	plain := draw()
	if got := draw("--metadata", write(t, t.TempDir(), "own.json", own)); !bytes.Equal(got, plain) {
		t.Error("the model's own metadata changes the heatmap")
	}
	got := draw("--metadata", write(t, t.TempDir(), "lower.json", lower))
	if bytes.Equal(got, plain) {
		t.Error("an eighth of the threshold makes the same heatmap")
	}
	m, meta, err := readModel(model, write(t, t.TempDir(), "lower.json", lower))
	if err != nil {
		t.Fatal(err)
	}
	d, err := inference.NewDetector(orttest.Open(t), m, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	x, err := d.Explain(t.Context(), read(t, image), meta, imagefile.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, x.Heatmap) {
		t.Error("the heatmap differs from that of the verdict")
	}
}
