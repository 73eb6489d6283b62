package inference

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// earlierDir holds models with models.MeasureBandMahalanobis, with and without
// discriminative heads, and the verdicts of the version that trained them on three
// images.
const earlierDir = "../models/testdata/earlier"

func earlierModel(t testing.TB, name string) *models.Model {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(earlierDir, name))
	if err != nil {
		t.Fatal(err)
	}
	m, err := models.Read(data, models.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDetect_ReturnsTheVerdictsOfEarlierVersions(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(earlierDir, "verdicts.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string][]struct {
		File      string  `json:"file"`
		Score     float64 `json:"reconstruction_error"`
		Threshold float64 `json:"threshold"`
		IsAnomaly bool    `json:"is_anomaly"`
		MSE       float64 `json:"mse"`
		Measure   string  `json:"measure"`
	}
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	if len(want) != 2 {
		t.Fatalf("%d models", len(want))
	}
	engine := orttest.Open(t)
	for name, verdicts := range want {
		m := earlierModel(t, name)
		if want := name == "markers.pt"; models.HasGaborHeads(m.Reference) != want {
			t.Errorf("%s: heads %v", name, !want)
		}
		for operators, open := range map[string]func(*ort.Engine, *models.Model, int) (*Detector, error){
			"served": NewDetector, "exported": NewExportDetector,
		} {
			t.Run(name+" "+operators, func(t *testing.T) {
				d, err := open(engine, m, 1)
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				for _, w := range verdicts {
					image, err := os.ReadFile(filepath.Join(testkit.Root(t), "testdata", "tiles", "test", w.File))
					if err != nil {
						t.Fatal(err)
					}
					v, err := d.Detect(t.Context(), image, nil, imagefile.DefaultLimits())
					if err != nil {
						t.Fatalf("%s: %v", w.File, err)
					}
					if relativeDifference(v.ReconstructionError, w.Score) > 1e-5 || relativeDifference(v.MSE, w.MSE) > 1e-5 ||
						v.Threshold != w.Threshold || v.IsAnomaly != w.IsAnomaly || v.Measure != w.Measure {
						t.Errorf("%s: %+v, expected %+v", w.File, v, w)
					}
				}
			})
		}
	}
}

// relativeDifference returns the difference of a and b relative to b.
func relativeDifference(a, b float64) float64 { return math.Abs(a-b) / math.Abs(b) }

// A model of an earlier version can be exported in every format and read again.
func TestExport_KeepsModelsOfEarlierVersions(t *testing.T) {
	for _, name := range []string{"bands.onnx", "markers.pt"} {
		m := earlierModel(t, name)
		for form, write := range map[string]func(*models.Model) ([]byte, error){
			"onnx": exporter.InferenceModel, "image onnx": exporter.ImageModel,
		} {
			data, err := write(m)
			if err != nil {
				t.Fatalf("%s as %s: %v", name, form, err)
			}
			again, err := models.Read(data, models.DefaultLimits())
			if err != nil {
				t.Fatalf("%s as %s: %v", name, form, err)
			}
			if len(again.Reference) != len(m.Reference) || again.Metadata.Decision.Threshold != m.Metadata.Decision.Threshold {
				t.Errorf("%s as %s: %d tensors, expected %d", name, form, len(again.Reference), len(m.Reference))
			}
		}
	}
}

func TestMembers_RefusesModelsOfEarlierVersions(t *testing.T) {
	d, err := NewDetector(orttest.Open(t), earlierModel(t, "bands.onnx"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.HasMembers() {
		t.Error("HasMembers is true")
	}
	if _, _, _, err := d.Members(t.Context(), make([]byte, 3*32*32)); err == nil {
		t.Error("Members returns no error")
	}
}
