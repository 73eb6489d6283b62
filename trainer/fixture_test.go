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

// folder is all normal tiles.
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
	d, err := dataset.Load(t.Context(), zipSource(t, files), dataset.Options{Side: 32, Limits: dataset.DefaultLimits()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// aFewTiles returns tiles for tests to which their number does not matter.
func aFewTiles(t *testing.T) *dataset.Source {
	t.Helper()
	return zipSource(t, testkit.Tiles(t, 18))
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
	for _, sd := range []*models.StateDict{&own.Weights, &own.Reference} {
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
