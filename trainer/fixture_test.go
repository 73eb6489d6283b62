package trainer

import (
	"bytes"
	"slices"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

const normalTiles = "../testdata/tiles/train/good"

// folder returns all normal tiles.
func folder(t *testing.T) *dataset.Source {
	t.Helper()
	src, err := dataset.OpenFolder(normalTiles, dataset.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// zipSource returns the files as a source.
func zipSource(t testing.TB, files map[string][]byte) *dataset.Source {
	t.Helper()
	data := testkit.Zip(t, files)
	src, err := dataset.OpenZip(bytes.NewReader(data), int64(len(data)), dataset.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// loadTiles returns the files as a data set of 32×32 pixels.
func loadTiles(t *testing.T, files map[string][]byte) *dataset.Dataset {
	t.Helper()
	d, err := dataset.Load(t.Context(), zipSource(t, files), dataset.Options{Size: models.Square(32), Limits: dataset.DefaultLimits()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// aFewTiles returns 18 tiles, for tests that need few images.
func aFewTiles(t *testing.T) *dataset.Source {
	t.Helper()
	return zipSource(t, testkit.Tiles(t, 18))
}

// brief returns the options with a Stop that ends the training after its first step.
func brief(o Options) Options {
	stop := make(chan struct{})
	o.Stop, o.Progress = stop, func(Progress) { close(stop) }
	return o
}

// withHeads returns a model of level 2, the lowest level with heads. The model is
// trained once; each test gets a copy of its tensors.
func withHeads(t *testing.T, e *ort.Engine) *models.Model {
	t.Helper()
	headsOnce.Do(func() {
		m, err := Train(t.Context(), e, folder(t), Options{Level: 2, ImageSize: 32, Seed: 4,
			Stage: func(s Stage) { headsStages = append(headsStages, s) }})
		if err != nil {
			t.Fatal(err)
		}
		headsModel = m
	})
	if headsModel == nil {
		t.Fatal("the model could not be trained")
	}
	own := *headsModel
	for _, sd := range []*models.StateDict{&own.Weights, &own.Reference} {
		*sd = slices.Clone(*sd)
		for i := range *sd {
			(*sd)[i].Data = slices.Clone((*sd)[i].Data)
		}
	}
	return &own
}

var (
	headsOnce   sync.Once
	headsModel  *models.Model
	headsStages []Stage // of its training
)
