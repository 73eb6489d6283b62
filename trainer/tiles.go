package trainer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/decision"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/models"
)

// ErrTiles is returned, wrapped, when images cannot be cut into tiles as the options say.
var ErrTiles = errors.New("unusable tiles")

// ErrPlaces is returned, wrapped, when statistics by place are asked for and the images do
// not allow them.
var ErrPlaces = decision.ErrPlaces

// DefaultOverlap returns the default overlap of tiles of side×side pixels.
func DefaultOverlap(side int) int { return side / 8 }

const (
	// maxEpochTiles bounds the tiles that the autoencoder learns from. It has no part in the
	// verdict, and more of them would take most of the time of a training.
	maxEpochTiles = 128
	// maxMSEImages bounds the images of tiles that the threshold of the mean squared error
	// is computed from, which decides nothing.
	maxMSEImages = 8
)

// cutInto sets Tiles and the image size by a preparation.
func (o *Options) cutInto(p Preparation) error {
	if p.Tile == "" {
		for _, f := range []struct{ name, text string }{{"overlap", p.Overlap}, {"longest side", p.LongestSide}, {"statistics", p.Statistics}} {
			if f.text != "" {
				return fmt.Errorf("%w: the %s %.20q without the side of tiles; set the tile as well", ErrTiles, f.name, f.text)
			}
		}
		return nil
	}
	if p.Size != "" {
		return fmt.Errorf("%w: both an image size and tiles; images that are cut into tiles are scaled by the longest side", ErrTiles)
	}
	number := func(name, text string, byDefault int) (int, error) {
		if text == "" {
			return byDefault, nil
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("%w: the %s is %.20q, expected a number of pixels", ErrTiles, name, text)
		}
		return n, nil
	}
	side, err := number("tile", p.Tile, 0)
	if err != nil {
		return err
	}
	t := &models.Tiles{Statistics: models.TileStatistics(p.Statistics)}
	if t.Overlap, err = number("overlap", p.Overlap, DefaultOverlap(side)); err != nil {
		return err
	}
	if t.LongestSide, err = number("longest side", p.LongestSide, 0); err != nil {
		return err
	}
	if stride := models.DefaultArchitecture().Stride(); side < models.MinTileSide || side > MaxImageSize || side%stride != 0 {
		return fmt.Errorf("%w: the tile is %.20q, expected a multiple of %d from %d to %d", ErrTiles, p.Tile, stride, models.MinTileSide, MaxImageSize)
	}
	o.Tiles, o.ImageSize, o.Input = t, side, models.Square(side)
	return nil
}

// settleTiles checks the description of the tiles. It takes over that of the base.
func (o *Options) settleTiles() error {
	if o.Tiles == nil && o.Base != nil && o.Base.Tiles() != nil {
		t := *o.Base.Tiles()
		o.Tiles = &models.Tiles{Overlap: t.Overlap, LongestSide: t.LongestSide}
	}
	if o.Tiles == nil {
		return nil
	}
	if o.recordedFit() != "" || o.Window != nil || o.Region != nil {
		return fmt.Errorf("%w: images that are cut into tiles have no fit, no window and no region of interest", ErrTiles)
	}
	o.EightBits = true
	t := *o.Tiles
	switch t.Statistics {
	case "":
		t.Statistics = models.TilesAlike // to check the rest
	case models.TilesByPlace:
		t.Columns, t.Rows = 1, 1
	case models.TilesAlike:
	default:
		return fmt.Errorf("%w: the statistics %.40q, expected %q or %q", ErrTiles, t.Statistics, models.TilesAlike, models.TilesByPlace)
	}
	if err := t.Check(o.Input.Side()); err != nil {
		return fmt.Errorf("%w: %s", ErrTiles, detail(err, models.ErrMetadata))
	}
	return nil
}

// detail returns the text of an error without that of the error it wraps first.
func detail(err, wrapped error) string {
	text, prefix := err.Error(), wrapped.Error()+": "
	if len(text) > len(prefix) && text[:len(prefix)] == prefix {
		return text[len(prefix):]
	}
	return text
}

// epochImages returns the images that the autoencoder learns from: all, or a sample of
// tiles.
func epochImages(data *dataset.Dataset, o Options) *dataset.Dataset {
	if data.Tiled() == nil || data.Len() <= maxEpochTiles {
		return data
	}
	sample := streams.New(o.Seed, streams.Tiles).Perm(data.Len())[:maxEpochTiles]
	slices.Sort(sample)
	return data.Part(sample)
}

// eachTiled calls f with images of tiles in an order, on o.Threads workers, and returns how
// many of the first are done. It is eachInTime for images of tiles; tile returns a tile of
// the image until it is called again.
func eachTiled(ctx context.Context, data *dataset.Dataset, order []int, atLeast int64, until time.Time, o Options,
	f func(ctx context.Context, i int, image dataset.Tiled, tile func(k int) ([]byte, error)) error,
) (int, error) {
	all := data.Tiled()
	var next atomic.Int64
	err := o.workers().Each(ctx, o.Threads, func(running context.Context, _ int) error {
		var buffer []byte
		for {
			if running.Err() != nil {
				return context.Cause(running)
			}
			if !until.IsZero() && next.Load() >= atLeast && time.Now().After(until) {
				return nil
			}
			i := int(next.Add(1)) - 1
			if i >= len(order) {
				return nil
			}
			image := all[order[i]]
			if err := f(running, i, image, func(k int) ([]byte, error) { return data.Image(image.First+k, &buffer) }); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return 0, err
	}
	return min(int(next.Load()), len(order)), nil
}

// tileErrors returns the mean squared errors of images of tiles in an order, of the first
// ones if until passes: the mean over the tiles of each.
func tileErrors(ctx context.Context, d *inference.Detector, data *dataset.Dataset, order []int, o Options, until time.Time) ([]float64, error) {
	order = order[:min(len(order), maxMSEImages)]
	errs := make([]float64, len(order))
	n, err := eachTiled(ctx, data, order, minCalibrated, until, o, func(running context.Context, i int, image dataset.Tiled, tile func(int) ([]byte, error)) error {
		n := image.Grid.Len()
		for k := range n {
			pixels, err := tile(k)
			if err != nil {
				return err
			}
			s, err := d.ScoreTile(running, pixels, k)
			if err != nil {
				return err
			}
			errs[i] += s.MSE / float64(n)
		}
		return nil
	})
	return errs[:n], err
}

// tileScores are the scores of an image by tile.
type tileScores struct {
	anomaly []float64
	mse     float64 // of the image
	members [][]float64
}

// scoreTiles is gauge.scoreAll for images of tiles.
func scoreTiles(ctx context.Context, d *inference.Detector, data *dataset.Dataset, o Options) ([]tileScores, error) {
	order := streams.New(o.Seed, streams.Calibration).Perm(len(data.Tiled()))
	out := make([]tileScores, len(order))
	var until time.Time
	if o.MaxTime > 0 {
		until = time.Now().Add(o.MaxTime)
	}
	n, err := eachTiled(ctx, data, order, calibration.MinImages, until, o, func(running context.Context, i int, image dataset.Tiled, tile func(int) ([]byte, error)) error {
		if err := d.CheckGrid(image.Grid); err != nil {
			return err
		}
		n := image.Grid.Len()
		for k := range n {
			pixels, err := tile(k)
			if err != nil {
				return err
			}
			s, err := d.ScoreTile(running, pixels, k)
			if err != nil {
				return err
			}
			out[i].anomaly = append(out[i].anomaly, s.Anomaly)
			out[i].members = append(out[i].members, s.Members)
			out[i].mse += s.MSE / float64(n)
		}
		return nil
	})
	return out[:n], err
}

// recalibrateTiles is recalibrate for a model of tiles.
func recalibrateTiles(ctx context.Context, m *models.Model, data *dataset.Dataset, d *inference.Detector, g gauge, o Options) (*models.Model, *Recalibration, error) {
	o, err := o.settleRate(m)
	if err != nil {
		return nil, nil, err
	}
	o.begin(StageCalibrating)
	images, err := scoreTiles(ctx, d, data, o)
	if err != nil {
		return nil, nil, err
	}
	var members [][][]float64
	var before, mse []float64
	for _, s := range images {
		members, mse = append(members, s.members), append(mse, s.mse)
		before = append(before, calibration.Corrected(slices.Max(s.anomaly), len(s.anomaly), m.Metadata.Decision.Tiles))
	}
	c, counts, err := calibration.FitTiles(members, g.weights, o.FalseAlarmRate)
	if err != nil {
		return nil, nil, err
	}
	r := newReport(m, data, c, before)
	again := withCalibration(m, c, r, mse)
	again.Metadata.Decision.Tiles = counts
	if err := g.standardize(again, c.Offsets, c.Slopes); err != nil {
		return nil, nil, err
	}
	again.Metadata.Detectability = nil
	return again, r, nil
}
