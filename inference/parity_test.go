package inference

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// errorTolerance is the largest relative difference from Pillow and PyTorch. The JPEG
// decoders differ.
const errorTolerance = 0.005

// goldenDetector returns a detector for a checkpoint of the Python service.
func goldenDetector(t testing.TB) *Detector {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(testkit.Root(t), "testdata", "golden", "errors.pt"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := models.Read(data, models.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDetector(orttest.Open(t), m, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// The images are 100 real JPEG files, the expected errors of Pillow and PyTorch.
func TestDetect_MatchesPillowAndPyTorch(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(testkit.Root(t), "testdata", "golden", "errors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]float64
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	if len(want) != 100 {
		t.Errorf("%d images", len(want))
	}
	d := goldenDetector(t)
	worst := 0.0
	for name, w := range want {
		image, err := os.ReadFile(filepath.Join(testkit.Root(t), "testdata", "tiles", name))
		if err != nil {
			t.Fatal(err)
		}
		v, err := d.Detect(t.Context(), image, nil, imagefile.DefaultLimits())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		difference := math.Abs(v.ReconstructionError-w) / w
		worst = max(worst, difference)
		if difference > errorTolerance {
			t.Errorf("%s: error %.8f, PyTorch's %.8f", name, v.ReconstructionError, w)
		}
		if v.Threshold != models.DefaultThreshold || v.Measure != models.MeasureMSE || v.IsAnomaly != (v.ReconstructionError > v.Threshold) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	t.Logf("largest relative difference: %.2g", worst)
}
