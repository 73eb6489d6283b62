package trainer

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

const normalTiles = "../testdata/tiles/train/good"

// folder is all normal tiles.
func folder(t *testing.T) *Source {
	t.Helper()
	src, err := OpenFolder(normalTiles, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// tileData are the first n normal tiles by name.
func tileData(t *testing.T, n int) map[string][]byte {
	t.Helper()
	list, err := filepath.Glob(normalTiles + "/*.jpg")
	if err != nil || len(list) < n {
		t.Fatalf("%d tiles, %v", len(list), err)
	}
	files := map[string][]byte{}
	for _, f := range list[:n] {
		if files[filepath.Base(f)], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// aFewTiles are for tests to which the number of images does not matter.
func aFewTiles(t *testing.T) *Source {
	t.Helper()
	return zipSource(t, tileData(t, 18))
}

// brief gives the options of a training that ends after its first step.
func brief(o Options) Options {
	stop := make(chan struct{})
	o.Stop, o.Progress = stop, func(Progress) { close(stop) }
	return o
}

// withHeads is a model of level 2, the lowest that trains heads. It is trained
// once; what a test may change of it is its own.
func withHeads(t *testing.T, e *ort.Engine) *models.Model {
	t.Helper()
	headsOnce.Do(func() {
		m, err := Train(t.Context(), e, folder(t), Options{Level: 2, ImageSize: 32, Seed: 4})
		if err != nil {
			t.Fatal(err)
		}
		headsModel = m
	})
	if headsModel == nil {
		t.Fatal("the model could not be trained")
	}
	own := *headsModel
	for _, sd := range []*models.StateDict{&own.Weights, &own.Normality} {
		*sd = slices.Clone(*sd)
		for i := range *sd {
			(*sd)[i].Data = slices.Clone((*sd)[i].Data)
		}
	}
	return &own
}

var (
	headsOnce  sync.Once
	headsModel *models.Model
)
