package inference

import (
	"math"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/tiling"
	"github.com/deepmed/anomaly/models"
)

// The service's graph, the exported one and the one that takes a decoded image must agree
// about tiles of any preparation, in their scores and maps.
func TestFramedTiles_HaveTheSameScoresInEveryFormat(t *testing.T) {
	window := &models.Window{100, 3000}
	for name, c := range map[string]struct {
		p     models.Preprocessing
		tiles models.Tiles
		heads bool
		sizes [][2]int
	}{
		"window":           {models.Preprocessing{Window: window}, models.Tiles{Overlap: 8, Statistics: models.TilesAlike}, true, [][2]int{{150, 110}, {64, 64}, {40, 90}, {1, 1}}},
		"window, by place": {models.Preprocessing{Window: window}, models.Tiles{Overlap: 8, Statistics: models.TilesByPlace, Columns: 3, Rows: 2}, false, [][2]int{{150, 110}, {170, 120}}},
		"window, scaled":   {models.Preprocessing{Window: window}, models.Tiles{LongestSide: 130, Statistics: models.TilesAlike}, false, [][2]int{{400, 300}, {100, 200}}},
		"region":           {models.Preprocessing{Region: leftHalf(models.Size{W: 31, H: 47})}, models.Tiles{Overlap: 8, Statistics: models.TilesAlike}, true, [][2]int{{150, 110}, {40, 90}, {64, 64}, {350, 70}}},
		"region, by place": {models.Preprocessing{Region: leftHalf(models.Square(100))}, models.Tiles{Overlap: 8, Statistics: models.TilesByPlace, Columns: 3, Rows: 2}, true, [][2]int{{150, 110}, {170, 120}}},
		"region, scaled":   {models.Preprocessing{Region: leftHalf(models.Square(9))}, models.Tiles{LongestSide: 130, Statistics: models.TilesAlike}, false, [][2]int{{400, 300}, {100, 200}}},
		"region, window":   {models.Preprocessing{Region: leftHalf(models.Square(64)), Window: window}, models.Tiles{Overlap: 20, Statistics: models.TilesAlike}, true, [][2]int{{300, 200}}},
	} {
		t.Run(name, func(t *testing.T) {
			c.p.Tiles = &c.tiles
			m := framedModel(t, c.heads, models.Square(64), c.p)
			if err := m.Metadata.Validate(); err != nil {
				t.Fatal(err)
			}
			served, exported := servedAndExported(t, m)
			graph := newImageModel(t, m)
			for _, size := range c.sizes {
				deep := c.p.Window != nil
				file, samples := waves(t, size[0], size[1], deep)
				want, err := served.Detect(t.Context(), file, nil, imagefile.DefaultLimits())
				if err != nil {
					t.Fatal(err)
				}
				got, err := exported.Detect(t.Context(), file, nil, imagefile.DefaultLimits())
				if err != nil || relativeDifference(got.ReconstructionError, want.ReconstructionError) > 1e-5 || relativeDifference(got.MSE, want.MSE) > 1e-5 {
					t.Errorf("%v: %+v, exported %+v, %v", size, want, got, err)
				}
				w, h := tiling.Scaled(size[0], size[1], c.tiles.LongestSide)
				graph.size = models.Size{W: w, H: h}
				var score float64
				var plane []float32
				if deep {
					score, _, plane = runImage(t, graph, size[0], size[1], samples)
				} else {
					pix := make([]byte, len(samples))
					for i, v := range samples {
						pix[i] = byte(v)
					}
					score, _, plane = runImage(t, graph, size[0], size[1], pix)
				}
				if relativeDifference(score, want.ReconstructionError) > resizeTolerance {
					t.Errorf("%v: %v of the image model, %v of Detect", size, score, want.ReconstructionError)
				}
				x, err := served.Explain(t.Context(), file, nil, imagefile.DefaultLimits())
				if err != nil || x.ReconstructionError != want.ReconstructionError || len(x.Heatmap) == 0 {
					t.Errorf("%v: explained as %+v, %v", size, x, err)
				}
				if _, err := served.Picture(t.Context(), opened(t, served, file), 0); err != nil {
					t.Error(err)
				}
				if c.tiles.LongestSide > 0 {
					continue // Detect's map has the size of the original image
				}
				values, _, err := served.ImageMap(t.Context(), opened(t, served, file), 0)
				if err != nil || len(values) != len(plane) {
					t.Fatalf("%v: a map of %d values, %v", size, len(values), err)
				}
				var mask []bool
				if r := c.p.Region; r != nil {
					all, _ := r.Mask()
					mask = r.Place(models.FrameOf(models.Size{W: w, H: h}, "", w, h), all)
				}
				for i, v := range plane {
					if mask != nil && mask[i] != (values[i] > 0) {
						t.Fatalf("%v: the map is %v at %d, inside is %v", size, values[i], i, mask[i])
					}
					if math.Abs(float64(v-values[i])) > 2e-3*max(1, math.Abs(float64(v))) {
						t.Fatalf("%v: the map is %v at %d, expected %v", size, v, i, values[i])
					}
				}
			}
			if c.p.Region != nil && c.p.Window == nil && c.tiles.LongestSide == 0 {
				file, _ := waves(t, c.sizes[0][0], c.sizes[0][1], false)
				_, image, err := served.judgeTiles(t.Context(), opened(t, served, file), 0, always(mapSession), maxTileMap, false)
				if err != nil || image.Grid.Len() >= image.Grid.Places() || image.Grid.Len() < image.Grid.Places()/3 {
					t.Errorf("%d of %d tiles are judged, %v", image.Grid.Len(), image.Grid.Places(), err)
				}
				if slices.Contains(image.grey.Values[:c.sizes[0][0]*10], 0) {
					t.Error("the image is black outside of the region")
				}
			}
			if c.p.Window == nil || c.p.Region != nil {
				return
			}
			shallow, _ := waves(t, 150, 110, false)
			if v, err := served.Detect(t.Context(), shallow, nil, ImageLimits{}); err != nil || len(v.Warnings) != 1 {
				t.Errorf("an image of 8 bits: %+v, %v", v, err)
			}
		})
	}
}
