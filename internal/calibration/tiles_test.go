package calibration

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

// tilesOf returns images of tiles with two members of heavy tails.
func tilesOf(r *rand.Rand, images, tiles int) [][][]float64 {
	out := make([][][]float64, images)
	for k := range out {
		own := 0.3 * r.NormFloat64() // tiles of an image are similar
		for range tiles {
			out[k] = append(out[k], []float64{own + r.ExpFloat64(), own + r.NormFloat64()})
		}
	}
	return out
}

// More tiles do not mean more false alarms: the share of images above the threshold is the
// promised one for images of 10, 60 and 400 tiles, and for those of other numbers of tiles
// than the calibration's.
func TestFitTiles_KeepsTheFalseAlarmRateForAnyNumberOfTiles(t *testing.T) {
	const rate, images, later, repetitions = 0.1, 40, 60, 40
	for _, c := range []struct {
		learned, judged int
		low, high       float64
	}{{10, 10, 0.07, 0.12}, {60, 60, 0.07, 0.12}, {400, 400, 0.07, 0.12}, {60, 240, 0.04, 0.16}, {240, 60, 0.04, 0.16}} {
		r := rand.New(rand.NewPCG(uint64(c.learned), uint64(c.judged)))
		above := 0
		for range repetitions {
			cal, tiles, err := FitTiles(tilesOf(r, images, c.learned), []float64{1, 2}, rate)
			if err != nil {
				t.Fatal(err)
			}
			if tiles.Count != c.learned || len(cal.Scores) != images {
				t.Fatalf("%+v: %+v, %d scores", c, tiles, len(cal.Scores))
			}
			for _, image := range tilesOf(r, later, c.judged) {
				highest := 0.0
				for _, members := range image {
					highest = max(highest, cal.Join(members))
				}
				if Corrected(highest, c.judged, tiles) > cal.Threshold {
					above++
				}
			}
		}
		if share := float64(above) / (later * repetitions); share < c.low || share > c.high {
			t.Errorf("%+v: %.3f of normal images are above the threshold for %v", c, share, rate)
		}
	}
}

func TestFitTiles_RejectsUnusableValues(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	if _, _, err := FitTiles(tilesOf(r, MinImages-1, 100), nil, 0.05); !errors.Is(err, ErrTooFew) {
		t.Errorf("many tiles of few images: %v", err)
	}
	images := tilesOf(r, MinImages, 3)
	images[2] = nil
	if _, _, err := FitTiles(images, nil, 0.05); !errors.Is(err, ErrValues) {
		t.Errorf("an image without tiles: %v", err)
	}
	images[2] = [][]float64{{math.NaN(), 0}}
	if _, _, err := FitTiles(images, nil, 0.05); !errors.Is(err, ErrValues) {
		t.Errorf("not a number: %v", err)
	}
	if _, _, err := FitTileScores([][]float64{{1}, {2}}, 0.05); !errors.Is(err, ErrTooFew) {
		t.Errorf("two images: %v", err)
	}
}
