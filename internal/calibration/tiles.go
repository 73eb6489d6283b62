package calibration

import (
	"fmt"
	"math"
	"slices"

	"github.com/deepmed/anomaly/models"
)

// minTail is the smallest number of tiles that the tail of the scores is estimated from.
const minTail = 8

// FitTiles calibrates on images that are judged tile by tile: images × tiles × members.
// Location and scale of each member are its mean and population standard deviation over the
// tiles of all images. An image's score is the highest of its tiles', with
// models.TileCalibration.Correction. The threshold is the conformal quantile of the images'
// scores, so it holds for images, whatever the number of their tiles and however similar
// the tiles of an image are. FitTiles returns ErrTooFew for too few images, ErrRate and
// ErrValues.
func FitTiles(images [][][]float64, weights []float64, rate float64) (*Calibration, *models.TileCalibration, error) {
	if err := checkCount(len(images)); err != nil {
		return nil, nil, err
	}
	var rows [][]float64
	var counts []int
	for k, tiles := range images {
		if len(tiles) == 0 {
			return nil, nil, fmt.Errorf("%w: image %d has no tiles", ErrValues, k)
		}
		rows = append(rows, tiles...)
		counts = append(counts, len(tiles))
	}
	// The scale of thousands of tiles hardly depends on one image.
	c, err := FitCrossFitted(rows, weights, rate)
	if err != nil {
		return nil, nil, err
	}
	all := make([]float64, 0, len(rows))
	highest := make([]float64, len(images))
	for k, tiles := range images {
		for _, members := range tiles {
			s := c.Join(members)
			all = append(all, s)
			highest[k] = max(highest[k], s)
		}
	}
	t := tileCalibration(all, counts)
	for k := range highest {
		highest[k] = Corrected(highest[k], counts[k], t)
	}
	return c, t, c.setThreshold(highest, rate)
}

// FitTileScores is FitTiles for the scores of tiles, images × tiles. It computes the
// threshold only.
func FitTileScores(images [][]float64, rate float64) (*Calibration, *models.TileCalibration, error) {
	var all, highest []float64
	var counts []int
	for k, tiles := range images {
		if len(tiles) == 0 {
			return nil, nil, fmt.Errorf("%w: image %d has no tiles", ErrValues, k)
		}
		all = append(all, tiles...)
		counts = append(counts, len(tiles))
		highest = append(highest, slices.Max(tiles))
	}
	if err := checkCount(len(images)); err != nil {
		return nil, nil, err
	}
	t := tileCalibration(all, counts)
	for k := range highest {
		highest[k] = Corrected(highest[k], counts[k], t)
	}
	c, err := FitScores(highest, rate)
	return c, t, err
}

// Corrected returns the score of an image of a number of tiles whose highest score is
// given. It is at least 0, and rounded to float32.
func Corrected(highest float64, tiles int, c *models.TileCalibration) float64 {
	return float64(float32(max(highest-c.Correction(tiles), 0)))
}

// tileCalibration describes the scores of tiles, of images with these counts of tiles.
func tileCalibration(scores []float64, counts []int) *models.TileCalibration {
	counts = slices.Sorted(slices.Values(counts))
	sorted := slices.Sorted(slices.Values(scores))
	t := &models.TileCalibration{Count: counts[len(counts)/2], Fewest: counts[0], Most: counts[len(counts)-1]}
	// As many tiles as images: those that the images' scores are made of, about.
	n := min(max(len(counts), minTail), len(sorted)-1)
	if t.Most == 1 || n < 1 {
		return t // The score of a single tile says nothing about more of them.
	}
	above := sorted[len(sorted)-n:]
	limit := sorted[len(sorted)-n-1]
	for _, v := range above {
		t.Tail += (v - limit) / float64(n)
	}
	if math.IsNaN(t.Tail) || math.IsInf(t.Tail, 0) {
		t.Tail = 0
	}
	return t
}
