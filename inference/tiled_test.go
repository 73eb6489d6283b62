package inference

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/color"
	"image/png"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	onnxruntime "github.com/yalue/onnxruntime_go"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/tiling"
	"github.com/deepmed/anomaly/models"
)

// wavy returns a PNG of w×h pixels.
func wavy(t testing.TB, w, h int) []byte {
	t.Helper()
	m := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			wave := 127 + 100*math.Sin(float64(x)/9)*math.Cos(float64(y)/7)
			m.Set(x, y, color.NRGBA{uint8(wave), uint8(255 - wave), uint8(x + y), 255})
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tiledDetector returns a detector of a random model of tiles of 64 pixels.
func tiledDetector(t testing.TB, tiles models.Tiles, heads bool) *Detector {
	t.Helper()
	p := models.StandardPreprocessing()
	p.Tiles = &tiles
	m := patchModelOf(heads, models.Square(64), p)
	if err := m.CheckReference(); err != nil {
		t.Fatal(err)
	}
	d, err := NewDetector(orttest.Open(t), m, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// The score of an image is the highest of its tiles, each scored alone.
func TestDetect_OfTilesScoresTheWorstTile(t *testing.T) {
	d := tiledDetector(t, models.Tiles{Overlap: 8, Statistics: models.TilesAlike}, true)
	data := wavy(t, 150, 110)
	decoded, err := imagefile.Decode(data, imagefile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := tiling.New(150, 110, 64, 8)
	highest, mse := 0.0, 0.0
	for i := range g.Len() {
		left, top := g.At(i)
		pixels := make([]byte, 0, 3*64*64)
		for y := range 64 {
			at := 3 * ((top+y)*150 + left)
			pixels = append(pixels, decoded.Pix[at:at+3*64]...)
		}
		score, err := d.Score(t.Context(), pixels)
		if err != nil {
			t.Fatal(err)
		}
		tile, err := d.ScoreTile(t.Context(), pixels, i)
		if err != nil || tile.Anomaly != score || len(tile.Members) != 7 {
			t.Fatalf("tile %d: %+v, %v, expected the score %v", i, tile, err, score)
		}
		highest, mse = max(highest, score), mse+tile.MSE/float64(g.Len())
	}
	v, err := d.Detect(t.Context(), data, nil, ImageLimits{})
	if err != nil {
		t.Fatal(err)
	}
	if v.ReconstructionError != highest || math.Abs(v.MSE-mse) > 1e-6*mse || v.Measure != models.MeasureTiledPatchMahalanobis || len(v.Warnings) != 0 {
		t.Errorf("%+v, expected the score %v and the error %v", v, highest, mse)
	}
	x, err := d.Explain(t.Context(), data, nil, ImageLimits{})
	if err != nil || x.ReconstructionError != v.ReconstructionError {
		t.Errorf("explained: %+v, %v", x.Verdict, err)
	}
	// With four times as many tiles as the calibration's images, less is left of the score.
	large := wavy(t, 64+56*5, 64+56*3)
	v, err = d.Detect(t.Context(), large, nil, ImageLimits{})
	if err != nil {
		t.Fatal(err)
	}
	_, tiled, err := d.judgeTiles(t.Context(), opened(t, d, large), 0, always(scoreSession), 0, false)
	if err != nil || tiled.Grid.Len() != 24 {
		t.Fatal(tiled.Grid, err)
	}
	if c := d.Model().Metadata.Decision.Tiles.Correction(24); math.Abs(c-0.1*math.Log(4)) > 1e-9 {
		t.Errorf("correction %v", c)
	}
	if len(v.Warnings) != 0 {
		t.Errorf("24 tiles: %v", v.Warnings)
	}
	if v, err = d.Detect(t.Context(), wavy(t, 400, 300), nil, ImageLimits{}); err != nil || len(v.Warnings) != 1 {
		t.Errorf("42 tiles: %+v, %v", v, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Detect(ctx, data, nil, ImageLimits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := d.Detect(t.Context(), data[:len(data)/2], nil, ImageLimits{}); !errors.Is(err, ErrImage) {
		t.Errorf("damaged: %v", err)
	}
}

// A scheduler returns what the detector does, and pictures show the worst tile.
func TestScheduler_JudgesTiles(t *testing.T) {
	d := tiledDetector(t, models.Tiles{Overlap: 8, Statistics: models.TilesByPlace, Columns: 3, Rows: 2}, false)
	s := scheduler(t, 2, BatchOptions{})
	data := wavy(t, 150, 110)
	want, err := d.Detect(t.Context(), data, nil, ImageLimits{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Detect(t.Context(), d, Task{Image: data})
	if err != nil || got.ReconstructionError != want.ReconstructionError {
		t.Errorf("%+v, %v, expected %+v", got, err, want)
	}
	x, err := s.Explain(t.Context(), d, Task{Image: data, Overlay: true})
	if err != nil || x.ReconstructionError != want.ReconstructionError || len(x.Heatmap) == 0 {
		t.Errorf("%+v, %v", x, err)
	}
	if _, err := s.Detect(t.Context(), d, Task{Image: wavy(t, 64, 64)}); !errors.Is(err, ErrGrid) {
		t.Errorf("another grid: %v", err)
	}
	if picture, err := d.Picture(t.Context(), opened(t, d, data), 0); err != nil {
		t.Error(err)
	} else if c, err := png.DecodeConfig(bytes.NewReader(picture)); err != nil || c.Width != 3*64 || c.Height != 64 {
		t.Errorf("a picture of %d×%d pixels, %v", c.Width, c.Height, err)
	}
}

// The map of an image of one colour has no grid: no row or column of it stands out.
func TestImageMap_OfTilesHasNoSeams(t *testing.T) {
	d := tiledDetector(t, models.Tiles{Overlap: 16, Statistics: models.TilesAlike}, true)
	m := image.NewGray(image.Rect(0, 0, 300, 200))
	for i := range m.Pix {
		m.Pix[i] = 128
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	values, frame, err := d.ImageMap(t.Context(), opened(t, d, b.Bytes()), 0)
	if err != nil || frame.Input != (models.Size{W: 300, H: 200}) {
		t.Fatal(frame, err)
	}
	// The map of one tile differs from its neighbour's where the random statistics do, so a
	// seam would be a step as large as the whole range of the map.
	low, high := slices.Min(values), slices.Max(values)
	for i, v := range values {
		if x := i % 300; x > 0 && math.Abs(float64(v-values[i-1])) > 0.2*float64(high-low) {
			t.Fatalf("a step from %v to %v at column %d, of %v to %v", values[i-1], v, x, low, high)
		}
		if i >= 300 && math.Abs(float64(v-values[i-300])) > 0.2*float64(high-low) {
			t.Fatalf("a step from %v to %v at row %d", values[i-300], v, i/300)
		}
	}
}

func TestMapSize_IsTheImagesUpToALimit(t *testing.T) {
	for _, c := range []struct{ w, h, mw, mh int }{{2000, 1500, 2000, 1500}, {5472, 3648, 1824, 1216}, {1, 65535, 1, 65535}, {8000, 8000, 2000, 2000}} {
		if w, h := mapSize(c.w, c.h, maxTileMap); w != c.mw || h != c.mh || w*h > maxTileMap {
			t.Errorf("%+v: %d×%d", c, w, h)
		}
	}
}

// The exported graph whose input is the decoded image cuts it into the same tiles and
// returns the same score and map, for images of any size.
func TestImageModel_JudgesTilesLikeDetect(t *testing.T) {
	for _, c := range []struct {
		name  string
		tiles models.Tiles
		heads bool
		sizes [][2]int
	}{
		{"alike", models.Tiles{Overlap: 8, Statistics: models.TilesAlike}, true, [][2]int{{150, 110}, {64, 64}, {40, 90}, {300, 65}, {1, 1}}},
		{"by place", models.Tiles{Overlap: 8, Statistics: models.TilesByPlace, Columns: 3, Rows: 2}, false, [][2]int{{150, 110}, {170, 120}}},
		{"scaled", models.Tiles{Overlap: 0, LongestSide: 130, Statistics: models.TilesAlike}, false, [][2]int{{400, 300}, {100, 200}, {90, 20}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := tiledDetector(t, c.tiles, c.heads)
			onnx, err := exporter.ImageModel(d.Model())
			if err != nil {
				t.Fatal(err)
			}
			s, err := onnxruntime.NewDynamicAdvancedSessionWithONNXData(onnx, []string{"image"},
				[]string{"reconstruction_error", "is_anomaly", "anomaly_map", "mse"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Destroy()
			for _, size := range c.sizes {
				data := wavy(t, size[0], size[1])
				decoded, err := imagefile.Decode(data, imagefile.Options{})
				if err != nil {
					t.Fatal(err)
				}
				in, err := onnxruntime.NewTensor(onnxruntime.NewShape(int64(decoded.H), int64(decoded.W), 3), decoded.Pix)
				if err != nil {
					t.Fatal(err)
				}
				defer in.Destroy()
				out := make([]onnxruntime.Value, 4)
				if err := s.Run([]onnxruntime.Value{in}, out); err != nil {
					t.Fatalf("%v: %v", size, err)
				}
				for _, v := range out {
					defer v.Destroy()
				}
				want, err := d.Detect(t.Context(), data, nil, ImageLimits{})
				if err != nil {
					t.Fatal(err)
				}
				score, mse := out[0].(*onnxruntime.Tensor[float32]).GetData(), out[3].(*onnxruntime.Tensor[float32]).GetData()
				if len(score) != 1 || math.Abs(float64(score[0])-want.ReconstructionError) > resizeTolerance*max(want.ReconstructionError, 1) {
					t.Errorf("%v: score %v, expected %v", size, score, want.ReconstructionError)
				}
				if len(mse) != 1 || math.Abs(float64(mse[0])-want.MSE) > resizeTolerance*want.MSE {
					t.Errorf("%v: mean squared error %v, expected %v", size, mse, want.MSE)
				}
				if verdict := out[1].(*onnxruntime.Tensor[bool]).GetData(); verdict[0] != want.IsAnomaly {
					t.Errorf("%v: %v, expected %v", size, verdict, want.IsAnomaly)
				}
				w, h := tiling.Scaled(size[0], size[1], c.tiles.LongestSide)
				plane := out[2].(*onnxruntime.Tensor[float32])
				if shape := plane.GetShape(); len(shape) != 2 || shape[0] != int64(h) || shape[1] != int64(w) {
					t.Fatalf("%v: a map of %v, expected %d×%d", size, shape, h, w)
				}
				if c.tiles.LongestSide > 0 {
					continue // Detect's map has the size of the original image
				}
				values, _, err := d.ImageMap(t.Context(), opened(t, d, data), 0)
				if err != nil {
					t.Fatal(err)
				}
				for i, v := range plane.GetData() {
					if math.Abs(float64(v-values[i])) > 2e-3*max(1, math.Abs(float64(v))) {
						t.Fatalf("%v: the map is %v at %d, expected %v", size, v, i, values[i])
					}
				}
			}
			if c.tiles.Places() > 0 {
				pix := make([]byte, 3*64*64)
				in, err := onnxruntime.NewTensor(onnxruntime.NewShape(64, 64, 3), pix)
				if err != nil {
					t.Fatal(err)
				}
				defer in.Destroy()
				out := make([]onnxruntime.Value, 4)
				if err := s.Run([]onnxruntime.Value{in}, out); err != nil {
					t.Fatal(err)
				}
				if v := out[0].(*onnxruntime.Tensor[float32]).GetData()[0]; !math.IsInf(float64(v), 1) {
					t.Errorf("an image of other places has the score %v", v)
				}
			}
		})
	}
}

// Members of tiles join to the score that Detect corrects.
func TestCorrected_IsWhatDetectReturns(t *testing.T) {
	d := tiledDetector(t, models.Tiles{Overlap: 8, Statistics: models.TilesAlike}, false)
	data := wavy(t, 64, 64)
	j, _, err := d.judgeTiles(t.Context(), opened(t, d, data), 0, always(scoreSession), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := imagefile.Decode(data, imagefile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	score, err := d.Score(t.Context(), decoded.Pix)
	if err != nil {
		t.Fatal(err)
	}
	if want := calibration.Corrected(score, 1, d.Model().Metadata.Decision.Tiles); float64(j.score) != want || want <= score {
		t.Errorf("one tile instead of six: %v, expected %v, more than %v", j.score, want, score)
	}
}

// An image of many tiles gives way to other work after each batch.
func TestScheduler_DoesOtherWorkBetweenBatchesOfTiles(t *testing.T) {
	d := tiledDetector(t, models.Tiles{Overlap: 8, Statistics: models.TilesAlike}, false)
	s := scheduler(t, 1, BatchOptions{})
	data := wavy(t, 64+56*17, 64+56*8) // 162 tiles, of which 64 are a batch
	var ended atomic.Bool
	done := make(chan error, 1)
	go func() {
		v, err := s.Detect(t.Context(), d, Task{Image: data})
		ended.Store(true)
		if err == nil && v.ReconstructionError <= 0 {
			err = errors.New("no score")
		}
		done <- err
	}()
	for s.processors.TryAcquire(1) { // until the first batch begins
		s.processors.Release(1)
		time.Sleep(time.Millisecond)
	}
	if err := s.Work(t.Context(), func() error {
		if ended.Load() {
			t.Error("other work waited for all tiles")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	// All processors are free again, also after an error.
	if _, err := s.Detect(t.Context(), d, Task{Image: data[:len(data)/2]}); !errors.Is(err, ErrImage) {
		t.Errorf("damaged: %v", err)
	}
	if !s.processors.TryAcquire(1) {
		t.Error("a processor is still held")
	}
}

func TestTilesPerBatch_BoundsThePixelsOfABatch(t *testing.T) {
	for _, c := range []struct {
		side     int
		gpu      bool
		expected int
	}{{64, false, 64}, {256, false, 4}, {1024, false, 1}, {64, true, 512}, {256, true, 32}, {1024, true, 2}, {4096, true, 1}} {
		if n := tilesPerBatch(c.side, c.gpu); n != c.expected {
			t.Errorf("%+v: %d", c, n)
		}
	}
}
