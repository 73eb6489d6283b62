package evaluation

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
)

// tilesDetector returns a detector with a model trained on the real tiles. All tests
// share the model.
func tilesDetector(t *testing.T) *inference.Detector {
	t.Helper()
	e := orttest.Open(t)
	tilesOnce.Do(func() {
		src, err := dataset.OpenFolder(filepath.Join(tiles, TrainFolder), dataset.DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		if tilesModel, err = trainer.Train(t.Context(), e, src, trainer.Options{Level: 1, ImageSize: 64}); err != nil {
			t.Fatal(err)
		}
	})
	if tilesModel == nil {
		t.Fatal("the model could not be trained")
	}
	d, err := inference.NewDetector(e, tilesModel, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

var (
	tilesOnce  sync.Once
	tilesModel *models.Model
)
