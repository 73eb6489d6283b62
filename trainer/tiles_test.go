package trainer

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// Boards are images of one layout: dark squares at fixed places of a rough surface.
// Surfaces are the same without squares. A defective one has a light spot of 12 pixels.
type scene struct {
	board     bool
	w, h      int
	defective bool
}

func (s scene) draw(seed int) []byte {
	r := rand.New(rand.NewPCG(uint64(seed), 5))
	m := image.NewNRGBA(image.Rect(0, 0, s.w, s.h))
	phaseX, phaseY := 100*r.Float64(), 100*r.Float64()
	spotX, spotY := 20+r.IntN(s.w-40), 20+r.IntN(s.h-40)
	for y := range s.h {
		for x := range s.w {
			v := 120 + 12*math.Sin(float64(x)/9+phaseX)*math.Sin(float64(y)/7+phaseY) + 8*r.NormFloat64()
			if s.board && (x/17)%4 == 1 && (y/23)%2 == 0 {
				v -= 70
			}
			if dx, dy := x-spotX, y-spotY; s.defective && dx*dx+dy*dy < 36 {
				v += 100
			}
			i := 4 * (y*s.w + x)
			for k := range 3 {
				m.Pix[i+k] = byte(min(max(v, 0), 255))
			}
			m.Pix[i+3] = 255
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// sceneSource returns a folder of n images.
func sceneSource(t *testing.T, n int, s scene) *Source {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.png", i)), s.draw(i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	src, err := OpenFolder(dir, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// tileOptions are fast options of tiles of 64 pixels.
func tileOptions(statistics models.TileStatistics) Options {
	stop := make(chan struct{})
	return Options{Level: 1, ImageSize: 64, Tiles: &models.Tiles{Overlap: 8, Statistics: statistics}, Seed: 3, Threads: 2,
		Stage: func(s Stage) {
			if s == StageEpochs { // after the first step
				close(stop)
			}
		}, Stop: stop}
}

func TestTrain_OfTilesFindsSmallDefectsOfLargeImages(t *testing.T) {
	engine := orttest.Open(t)
	for _, c := range []struct {
		name       string
		board      bool
		statistics models.TileStatistics // asked for
		chosen     models.TileStatistics
		places     int
	}{
		{"surfaces", false, "", models.TilesAlike, 0},
		{"boards", true, "", models.TilesByPlace, 6},
		{"boards as surfaces", true, models.TilesAlike, models.TilesAlike, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := scene{board: c.board, w: 150, h: 110}
			m, err := Train(t.Context(), engine, sceneSource(t, 20, s), tileOptions(c.statistics))
			if err != nil {
				t.Fatal(err)
			}
			tiles := m.Tiles()
			if tiles == nil || tiles.Statistics != c.chosen || tiles.Places() != c.places || m.ImageSize != 64 {
				t.Fatalf("tiles %+v of %d pixels", tiles, m.ImageSize)
			}
			if (tiles.Gain != nil) != (c.statistics == "") {
				t.Errorf("gain %v", tiles.Gain)
			}
			d := m.Metadata.Decision
			if d.Measure != models.MeasureTiledPatchMahalanobis || d.CalibrationImages != 20 || m.Metadata.Training.Images != 20 ||
				d.Tiles.Count != 6 || d.Tiles.Most != 6 || !(d.Tiles.Tail > 0) {
				t.Errorf("%+v, tiles %+v, %d images", d, d.Tiles, m.Metadata.Training.Images)
			}
			var b bytes.Buffer
			if err := exporter.WriteCheckpoint(&b, m); err != nil {
				t.Fatal(err)
			}
			read, err := models.Read(b.Bytes(), models.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			detector, err := inference.NewDetector(engine, read, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer detector.Close()
			alarms, found := 0, 0
			for i := range 10 {
				v, err := detector.Detect(t.Context(), s.draw(100+i), nil, imagefile.Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if v.IsAnomaly {
					alarms++
				}
				defect := s
				defect.defective = true
				x, err := detector.Explain(t.Context(), defect.draw(200+i), nil, imagefile.Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if x.IsAnomaly {
					found++
				}
				if box, err := png.DecodeConfig(bytes.NewReader(x.Heatmap)); err != nil || box.Width != 150 || box.Height != 110 {
					t.Errorf("a heatmap of %d×%d pixels, %v", box.Width, box.Height, err)
				}
			}
			if alarms > 2 || found < 9 {
				t.Errorf("%d of 10 normal images and %d of 10 defects are anomalies", alarms, found)
			}
			// An image of another size has other tiles.
			v, err := detector.Detect(t.Context(), scene{board: c.board, w: 700, h: 500}.draw(1), nil, imagefile.Limits{})
			if c.places > 0 {
				if !errors.Is(err, inference.ErrGrid) {
					t.Errorf("an image of other places: %v", err)
				}
			} else if err != nil || len(v.Warnings) != 1 {
				t.Errorf("an image of 117 tiles: %+v, %v", v, err)
			}
			recalibrates(t, engine, read, s)
		})
	}
}

// recalibrates checks that the threshold of a model of tiles can be drawn again.
func recalibrates(t *testing.T, engine *inference.Engine, m *models.Model, s scene) {
	t.Helper()
	o := Options{ImageSize: m.ImageSize, Preprocessing: m.Metadata.InputPreprocessing(), Threads: 2}
	data, err := LoadCalibrationImages(t.Context(), engine, sceneSource(t, 9, s), o)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	again, r, err := Recalibrate(t.Context(), engine, m, data, o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Images != 9 || again.Metadata.Decision.CalibrationImages != 9 || again.Tiles() == nil || again.Metadata.Decision.Tiles == nil ||
		again.Metadata.Decision.Threshold == m.Metadata.Decision.Threshold {
		t.Errorf("%+v, decision %+v", r, again.Metadata.Decision)
	}
	var b bytes.Buffer
	if err := exporter.WriteCheckpoint(&b, again); err != nil {
		t.Error(err)
	}
}

func TestTrain_RejectsUnusableTiles(t *testing.T) {
	engine := orttest.Open(t)
	for _, c := range []struct {
		name   string
		images int
		change func(*Options)
		want   error
	}{
		{"few images", 7, func(*Options) {}, ErrTooFewCalibrationImages},
		{"a wide overlap", 8, func(o *Options) { o.Tiles.Overlap = 33 }, ErrTiles},
		{"small tiles", 8, func(o *Options) { o.ImageSize = 48 }, ErrTiles},
		{"a long side", 8, func(o *Options) { o.Tiles.LongestSide = 1 << 20 }, ErrTiles},
		{"other statistics", 8, func(o *Options) { o.Tiles.Statistics = "each" }, ErrTiles},
	} {
		o := tileOptions("")
		c.change(&o)
		if _, err := Train(t.Context(), engine, sceneSource(t, c.images, scene{w: 80, h: 70}), o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
