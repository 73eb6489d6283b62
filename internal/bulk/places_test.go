package bulk

import (
	"bytes"
	picture "image"
	"image/png"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// An image that a model of tiles cannot judge has its error as its result, and does not end
// the job.
func TestLines_NameAnImageOfOtherPlacesThanTheModels(t *testing.T) {
	p := models.StandardPreprocessing()
	p.Tiles = &models.Tiles{Overlap: 8, Statistics: models.TilesByPlace, Columns: 2, Rows: 1}
	size, arch := models.Square(64), models.Architecture{Channels: []int{3, 4, 6}}
	tenths := func(ps []models.Parameter) (sd models.StateDict) {
		for _, p := range ps {
			sd = append(sd, models.Tensor{Name: p.Name, Shape: p.Shape, Data: slices.Repeat([]float32{0.1}, p.Size())})
		}
		return sd
	}
	m := &models.Model{
		Architecture: arch, ImageSize: size.Side(), Weights: tenths(arch.Parameters()),
		Reference: tenths(slices.Concat(models.PlaceParameters(size, p.Tiles.Places()), models.PatchParameters(size, false, 4))),
		Metadata: models.Metadata{Threshold: 1, ImageSize: size.Side(), Preprocessing: p, Decision: &models.Decision{
			Measure: models.MeasureTiledPatchMahalanobis, Threshold: 1, Backbone: models.EmbeddedBackbone(), Tiles: &models.TileCalibration{Count: 2, Fewest: 2, Most: 2},
		}},
	}
	e := orttest.OpenThreads(t, 1)
	d, err := inference.NewDetector(e, m, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s, err := inference.NewScheduler(e, inference.BatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	grey := func(w, h int) []byte {
		var b bytes.Buffer
		if err := png.Encode(&b, picture.NewGray(picture.Rect(0, 0, w, h))); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	lines, counts, err := judgement{scheduler: s, detector: d, threads: 1}.lines(t.Context(), []image{{name: "a.png", data: grey(64, 64)}, {name: "b.png", data: grey(120, 64)}})
	if err != nil || counts.Unreadable != 1 || counts.Judged != 1 || !bytes.Contains(lines, []byte("2×1")) {
		t.Errorf("%s, %+v, %v", lines, counts, err)
	}
}
