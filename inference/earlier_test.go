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
	"github.com/deepmed/anomaly/models"
)

// earlierDir has models that decide by models.MeasureBandMahalanobis, with markers and
// without, and what the program that trained them said of three images.
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

func TestModelsOfEarlierVersionsAreJudgedAsTheyWere(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(earlierDir, "verdicts.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string][]struct {
		File      string  `json:"file"`
		Figure    float64 `json:"reconstruction_error"`
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
		if marked := name == "markers.pt"; models.HasGaborHeads(m.Reference) != marked {
			t.Errorf("%s: markers %v", name, !marked)
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
					image, err := os.ReadFile(filepath.Join("../testdata/tiles/test", w.File))
					if err != nil {
						t.Fatal(err)
					}
					v, err := d.Detect(t.Context(), image, nil, imagefile.DefaultLimits())
					if err != nil {
						t.Fatalf("%s: %v", w.File, err)
					}
					if apart(v.ReconstructionError, w.Figure) > 1e-5 || apart(v.MSE, w.MSE) > 1e-5 ||
						v.Threshold != w.Threshold || v.IsAnomaly != w.IsAnomaly || v.Measure != w.Measure {
						t.Errorf("%s: %+v, expected %+v", w.File, v, w)
					}
				}
			})
		}
	}
}

// apart is the difference of two figures as a share of the second.
func apart(a, b float64) float64 { return math.Abs(a-b) / math.Abs(b) }

// What is served of a model of an earlier version can be exported again, in every
// form, and is the same model then.
func TestModelsOfEarlierVersionsAreWrittenAgain(t *testing.T) {
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

func TestModelsOfEarlierVersionsHaveNoMembers(t *testing.T) {
	d, err := NewDetector(orttest.Open(t), earlierModel(t, "bands.onnx"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.HasMembers() {
		t.Error("it has members")
	}
	if _, _, _, err := d.Members(t.Context(), make([]byte, 3*32*32)); err == nil {
		t.Error("Members gives no error")
	}
}
