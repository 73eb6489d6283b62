package inference

import (
	"context"
	"errors"
	"fmt"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/tiling"
	"github.com/deepmed/anomaly/models"
)

// ErrGrid is returned, wrapped, when a model compares each place of an image with the same
// place of its training images, and an image has other places.
var ErrGrid = errors.New("the image does not have the model's places")

// tileBatch and tileBatchGPU are the numbers of pixels of the tiles that run as one batch on a
// CPU and on a GPU: 4 and 32 tiles of 256×256 pixels, which take 13 MB of working memory each.
const (
	tileBatch    = 4 * 256 * 256
	tileBatchGPU = defaultOnGPU * 256 * 256
)

// tilesPerBatch returns the number of tiles of side×side pixels in a batch.
func tilesPerBatch(side int, gpu bool) int {
	if gpu {
		return max(tileBatchGPU/(side*side), 1)
	}
	return max(tileBatch/(side*side), 1)
}

// turn waits for processors and returns the session for the next batch of an image's tiles.
type turn func() (sessionKind, error)

// always returns a turn that does not wait.
func always(k sessionKind) turn { return func() (sessionKind, error) { return k, nil } }

// maxTileMap bounds the values of the anomaly map of an image of tiles, and so the pixels
// of its heatmap. The map of a larger image is reduced by a whole factor.
const maxTileMap = 4 << 20

// TileScores are the scores of one tile.
type TileScores struct {
	Anomaly, MSE float64
	// Members are the member scores before they are standardized.
	Members []float64
}

// Tiled reports whether the model judges images tile by tile.
func (d *Detector) Tiled() bool { return d.model.Tiles() != nil }

// ScoreTile returns the scores of a prepared tile (side×side×3 bytes) at a place of the
// image, the index of the tile.
func (d *Detector) ScoreTile(ctx context.Context, pixels []byte, place int) (TileScores, error) {
	if err := d.checkLength(pixels); err != nil {
		return TileScores{}, err
	}
	j := pixelJob(pixels)
	j.place = place
	j.members = make([]float32, d.members())
	if err := d.run(ctx, memberSession, []*job{j}); err != nil {
		return TileScores{}, err
	}
	if !models.Finite(j.members...) || !models.Finite(j.score, j.mse) {
		return TileScores{}, ErrNotFinite
	}
	s := TileScores{Anomaly: float64(j.score), MSE: float64(j.mse)}
	for _, v := range j.members {
		s.Members = append(s.Members, float64(v))
	}
	return s, nil
}

// CheckGrid returns ErrGrid, wrapped, if the model cannot judge an image of a grid.
func (d *Detector) CheckGrid(g tiling.Grid) error {
	t := d.model.Tiles()
	if t == nil || t.Statistics != models.TilesByPlace || len(g.Xs) == t.Columns && len(g.Ys) == t.Rows {
		return nil
	}
	return fmt.Errorf("%w: its %d×%d pixels are %d×%d tiles, expected %d×%d; send an image of the size of the training images", ErrGrid,
		g.W, g.H, len(g.Xs), len(g.Ys), t.Columns, t.Rows)
}

// tiledImage is the result of an image that was judged tile by tile.
type tiledImage struct {
	imagefile.Cut
	// anomaly is the anomaly map and grey the image's brightness at the map's size; nil
	// unless the session computes maps.
	anomaly, grey *tiling.Plane
	// worst is the tile of the highest score.
	worst []byte
}

// judgeTiles decodes an image and computes its tiles in batches, as they are decoded. The
// job has the scores of the image. next is called before the first batch is decoded, and
// after each batch but the last. With scoreSession or singleThreadSession, no more than a
// row of tiles and a batch are in memory as pixels. mapLimit bounds the values of the anomaly
// map of mapSession. keepWorst keeps the tile of the highest score.
func (d *Detector) judgeTiles(ctx context.Context, f *imagefile.Frames, i int, next turn, mapLimit int, keepWorst bool) (*job, *tiledImage, error) {
	k, err := next()
	if err != nil {
		return nil, nil, err
	}
	side := d.Size().W
	provider, _ := d.engine.Provider()
	size := tilesPerBatch(side, provider == ort.CUDA)
	image := &tiledImage{}
	total := &job{}
	var (
		jobs   []*job
		pixels [][]byte
		first  int // tile of jobs[0]
		mse    float64
	)
	flush := func() error {
		if len(jobs) == 0 {
			return nil
		}
		if err := d.run(ctx, k, jobs); err != nil {
			return err
		}
		for i, j := range jobs {
			if !models.Finite(j.score, j.mse) || !models.Finite(j.anomaly...) {
				return ErrNotFinite
			}
			mse += float64(j.mse)
			if j.score > total.score || total.tiles == 0 {
				total.score = j.score
				if keepWorst {
					image.worst = append(image.worst[:0], pixels[i]...)
				}
			}
			total.tiles++
			if k == mapSession {
				pix := pixels[i]
				image.anomaly.Add(first+i, j.anomaly)
				image.grey.AddFunc(first+i, func(at int) float32 {
					return (float32(pix[3*at]) + float32(pix[3*at+1]) + float32(pix[3*at+2])) / 3
				})
			}
			imagefile.ReleaseTile(pixels[i])
		}
		first += len(jobs)
		jobs, pixels = jobs[:0], pixels[:0]
		return nil
	}
	begin := func(c imagefile.Cut) error {
		image.Cut = c
		if k == mapSession {
			w, h := mapSize(c.W, c.H, mapLimit)
			image.anomaly, image.grey = tiling.NewPlane(c.Grid, w, h), tiling.NewPlane(c.Grid, w, h)
		}
		return d.CheckGrid(c.Grid)
	}
	_, err = imagefile.CutTiles(f.Data(), side, *d.model.Tiles(), f.Options(i), begin, func(i int, pix []byte) error {
		j := pixelJob(pix)
		j.place = i
		if k == mapSession {
			j.anomaly = make([]float32, side*side)
		}
		jobs, pixels = append(jobs, j), append(pixels, pix)
		if len(jobs) < size {
			return nil
		}
		if err := flush(); err != nil || first == image.Grid.Len() {
			return err
		}
		k, err = next()
		return err
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return nil, nil, err
	}
	total.mse = float32(mse / float64(total.tiles))
	total.score = float32(calibration.Corrected(float64(total.score), total.tiles, d.tileCalibration()))
	return total, image, nil
}

func (d *Detector) tileCalibration() *models.TileCalibration {
	if x := d.model.Metadata.Decision; x != nil {
		return x.Tiles
	}
	return nil
}

// mapSize returns the size of the anomaly map of an image of w×h pixels: its own, or that
// divided by the smallest whole number with which it has at most that many values.
func mapSize(w, h, limit int) (int, int) {
	for by := 1; ; by++ {
		if mw, mh := (w+by-1)/by, (h+by-1)/by; mw*mh <= limit {
			return mw, mh
		}
	}
}

// detectTiles is DetectFrame for a model of tiles.
func (d *Detector) detectTiles(ctx context.Context, f *imagefile.Frames, i int, meta *models.Metadata, next turn) (Verdict, error) {
	j, _, err := d.judgeTiles(ctx, f, i, next, 0, false)
	if err != nil {
		return Verdict{}, err
	}
	return d.judge(j, meta)
}

// explainTiles is ExplainFrame for a model of tiles. next must return mapSession. With overlay,
// the heatmap has no image below the colours.
func (d *Detector) explainTiles(ctx context.Context, f *imagefile.Frames, i int, meta *models.Metadata, next turn, overlay bool) (*Explanation, error) {
	j, image, err := d.judgeTiles(ctx, f, i, next, maxTileMap, false)
	if err != nil {
		return nil, err
	}
	v, err := d.judge(j, meta)
	if err != nil {
		return nil, err
	}
	if v.Measure == models.MeasureMSE {
		return nil, fmt.Errorf("%w: the metadata sent decides by the mean squared error", ErrNoMap)
	}
	m := image.anomaly
	// The score of an image of other than the usual number of tiles is corrected, and the
	// threshold of its parts with it.
	threshold := max(v.Threshold+d.tileCalibration().Correction(j.tiles), 0)
	e := &Explanation{Verdict: v, Evidence: Evidence{Regions: regions(m.Values, image.frame(), threshold)}}
	var pixels []byte
	if !overlay {
		pixels = make([]byte, 0, 3*len(image.grey.Values))
		for _, v := range image.grey.Values {
			grey := byte(v + 0.5)
			pixels = append(pixels, grey, grey, grey)
		}
	}
	e.Heatmap, err = heatmap(pixels, m.Values, models.Size{W: m.W, H: m.H}, threshold)
	return e, err
}

// maxComparedMap bounds the values of ImageMap for a model of tiles.
const maxComparedMap = 1 << 16

// ImageMap decodes image i, from 0, of a file and returns its anomaly map, and the frame of
// the map in the image: of the size of the network's input or, of a model of tiles, of a part of the
// image's. The errors are those of Explain.
func (d *Detector) ImageMap(ctx context.Context, f *imagefile.Frames, i int) ([]float32, models.Frame, error) {
	if d.Tiled() {
		_, image, err := d.judgeTiles(ctx, f, i, always(mapSession), maxComparedMap, false)
		if err != nil {
			return nil, models.Frame{}, err
		}
		return image.anomaly.Values, image.frame(), nil
	}
	p, err := imagefile.PrepareSized(f.Data(), d.Size(), f.Options(i))
	if err != nil {
		return nil, models.Frame{}, err
	}
	values, _, err := d.Map(ctx, p.Pix)
	return values, p.Frame, err
}

// frame returns the frame of the anomaly map in the image.
func (t *tiledImage) frame() models.Frame {
	return models.FrameOf(models.Size{W: t.anomaly.W, H: t.anomaly.H}, "", t.W, t.H)
}

// errEnough ends the cutting of an image.
var errEnough = errors.New("inference: the tile was cut")

// PrepareInput decodes an image file and returns an input of the network with its place: the
// whole image or, of a model of tiles, the tile in the middle or the first one.
func (d *Detector) PrepareInput(data []byte, lim ImageLimits, middle bool) (pixels []byte, place int, err error) {
	if !d.Tiled() {
		pixels, err = imagefile.Prepare(data, d.Size(), d.ImageOptions(lim))
		return pixels, 0, err
	}
	begin := func(c imagefile.Cut) error {
		if middle {
			columns, rows := len(c.Grid.Xs), len(c.Grid.Ys)
			place = rows/2*columns + columns/2
		}
		return d.CheckGrid(c.Grid)
	}
	_, err = imagefile.CutTiles(data, d.Size().W, *d.model.Tiles(), d.ImageOptions(lim), begin, func(i int, pix []byte) error {
		if i == place {
			pixels = pix
			return errEnough
		}
		imagefile.ReleaseTile(pix)
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return pixels, place, err
}
