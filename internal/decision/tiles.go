package decision

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/heads"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

const (
	// maxTiles bounds the tiles that are scored to calibrate the threshold, of whole
	// images. Scoring a tile of 256 pixels takes about 15 ms.
	maxTiles = 10_000
	// sampleShare and scoreShare are the shares of the time left after reading the images
	// after which the features of the sample, and the scores of all tiles, must be done.
	sampleShare, scoreShare = 0.15, 0.6
	// placeShare is the share of that time that the means of places may take.
	placeShare = 0.15
	// placeGain is the share of the variance of held-out features that their place must
	// explain for statistics by place. They take more memory and more images.
	placeGain = 0.1
)

// tiled is the images to learn from when they are cut into tiles.
type tiled struct {
	*reference // the sample of tiles that statistics and heads are learned from
	// images are the images in random order; image k is in fold k%folds.
	images []dataset.Tiled
	// places is not nil if features are compared with those at their place; placed is
	// the place of each tile of the sample.
	places *places
	placed []int
	// perTile is the time that the features of a tile took.
	perTile time.Duration
}

// learnTiles is Learn for images that are cut into tiles. Images are learned from, left
// out and counted as a whole, never a part of their tiles.
func learnTiles(ctx context.Context, engine *ort.Engine, data *dataset.Dataset, o Options) (Learned, error) {
	all := data.Tiled()
	if len(all) < calibration.MinImages {
		return Learned{}, fmt.Errorf("%w: got %d images, a model of tiles is trained on at least %d", calibration.ErrTooFew, len(all), calibration.MinImages)
	}
	var left time.Duration
	var sampleUntil, scoreUntil time.Time
	if !o.Deadline.IsZero() {
		left = max(1, time.Until(o.Deadline))
		sampleUntil = time.Now().Add(time.Duration(sampleShare * float64(left)))
		scoreUntil = time.Now().Add(time.Duration(scoreShare * float64(left)))
	}
	o.begin(StageExtractingFeatures)
	e, err := extractor.New(engine, data.Layout)
	if err != nil {
		return Learned{}, err
	}
	defer e.Close()
	x := drawTiles(data, e.Maps(), o)
	if err := x.extractSample(ctx, e, o, sampleUntil); err != nil {
		return Learned{}, err
	}
	tiles := *o.Tiles
	if err := x.choosePlaces(ctx, e, &tiles, o, time.Duration(placeShare*float64(left))); err != nil {
		return Learned{}, err
	}
	s, err := x.described(ctx, o)
	if err != nil {
		return Learned{}, err
	}
	h, err := x.trainHeads(ctx, engine, e, s, left, o)
	if err != nil {
		return Learned{}, err
	}
	o.begin(StageScoringTiles)
	scores, err := x.score(ctx, e, s, h, o, scoreUntil)
	if err != nil {
		return Learned{}, err
	}
	c, counts, err := x.calibrateTiles(scores, h, o)
	if err != nil {
		return Learned{}, err
	}
	d := c.Decision(models.MeasureTiledPatchMahalanobis)
	d.Backbone, d.Tiles = models.EmbeddedBackbone(), counts
	if d.MinFalseAlarmRate > d.FalseAlarmRate {
		data.Warn("%d normal images support a false alarm rate of %.3f at best, not %.3f: the threshold is the highest they allow", len(scores), d.MinFalseAlarmRate, d.FalseAlarmRate)
	}
	out := Learned{Decision: &d, Tiles: &tiles, Tensors: s.tensors(data.Layout.Size, h, c)}
	if x.places != nil {
		out.Tensors = slices.Concat(x.places.tensors(data.Layout.Size), out.Tensors)
	}
	if h != nil {
		out.HeadSteps = h.Steps
	}
	if o.Deadline.IsZero() && !workers.Closed(o.Stop) {
		o.begin(StageMeasuringDetectability)
		out.Detectability, err = x.detectable(ctx, e, s, h, c, o)
	}
	return out, err
}

// drawTiles draws the images to learn from, and a sample of their tiles whose features fit
// into memory. Tile k of the sample is of an image in fold k%folds, as patches and heads
// expect it of images. The folds are even in number, so that no head learns from tiles
// of an image that it judges.
func drawTiles(data *dataset.Dataset, maps []extractor.Map, o Options) *tiled {
	all := data.Tiled()
	random := streams.New(o.Seed, streams.ReferenceImages)
	x := &tiled{reference: &reference{data: data, maps: maps}}
	tiles := 0
	for _, i := range random.Perm(len(all)) {
		n := all[i].Grid.Len()
		if len(x.images) >= calibration.MinImages && (len(x.images) == maxImages || tiles+n > maxTiles) {
			break
		}
		tiles += n
		x.images = append(x.images, all[i])
	}
	x.folds = min(manyFolds, len(x.images)) &^ 1
	floats := 0
	for _, m := range maps {
		floats += m.Floats()
	}
	for _, m := range maps[firstTap():] { // the deviations from the features at a place
		floats += m.Floats()
	}
	most := max(maxFeatureBytes/(4*floats), 2*heads.MinImages)
	// Each fold has its images and an order of the tiles of each.
	decks := make([]*deck, x.folds)
	for f := range decks {
		decks[f] = newDeck(x.images, f, x.folds, random)
	}
	for len(x.order) < most {
		image, tile, ok := decks[len(x.order)%x.folds].next()
		if !ok {
			break
		}
		x.order = append(x.order, x.images[image].First+tile)
		x.placed = append(x.placed, x.images[image].Grid.Place(tile))
	}
	return x
}

// deck draws the tiles of a fold's images, one of each image in turn.
type deck struct {
	images []int
	tiles  [][]int // by image, in random order
	turn   int
}

func newDeck(images []dataset.Tiled, fold, folds int, random *rand.Rand) *deck {
	d := &deck{}
	for k := fold; k < len(images); k += folds {
		d.images = append(d.images, k)
		d.tiles = append(d.tiles, random.Perm(images[k].Grid.Len()))
	}
	return d
}

// next returns the next tile, false if there is none.
func (d *deck) next() (image, tile int, ok bool) {
	for range d.images {
		k := d.turn % len(d.images)
		d.turn++
		if n := len(d.tiles[k]); n > 0 {
			tile = d.tiles[k][n-1]
			d.tiles[k] = d.tiles[k][:n-1]
			return d.images[k], tile, true
		}
	}
	return 0, 0, false
}

// extractSample computes the features of the sample. If until is not zero, it stops then
// and drops the tiles from the first missing one on.
func (x *tiled) extractSample(ctx context.Context, e *extractor.Extractor, o Options, until time.Time) error {
	began := time.Now()
	features, err := e.ObserveAll(ctx, o.Workers, extractor.Request{
		Images: len(x.order), First: x.first(o), Until: until, AtLeast: max(2*x.folds, calibration.MinImages),
		Painter: func() func(int) ([]byte, error) {
			var buffer []byte
			return func(k int) ([]byte, error) { return x.image(k, &buffer) }
		},
	})
	if err != nil {
		return err
	}
	n := slices.IndexFunc(features, func(maps [][]float32) bool { return maps == nil })
	if n < 0 {
		n = len(features)
	}
	x.features, x.order, x.placed = features[:n], x.order[:n], x.placed[:n]
	x.perTile = time.Since(began) / time.Duration(n)
	return x.setInside()
}

// first returns the index of the first feature map that is needed.
func (x *tiled) first(o Options) int {
	if o.HasHeads(len(x.order)) {
		return 0
	}
	return firstTap()
}

// described fits the statistics to the features of the sample or, by place, to their
// deviations from those at their place.
func (x *tiled) described(ctx context.Context, o Options) (*statistics, error) {
	if x.places == nil {
		return x.describe(ctx, o)
	}
	deviations := *x.reference
	deviations.features = make([][][]float32, len(x.features))
	for k, maps := range x.features {
		deviations.features[k] = x.places.deviations(maps, x.placed[k], k%x.folds)
	}
	x.centred = func(k, fold int, maps [][]float32) [][]float32 { return x.places.deviations(maps, x.placed[k], fold) }
	return deviations.describe(ctx, o)
}

// score returns the member scores of all tiles, by image and tile, by statistics and a head
// that were fitted without the image. If until is not zero, no image is started then once
// calibration.MinImages are.
func (x *tiled) score(ctx context.Context, e *extractor.Extractor, s *statistics, h *heads.Heads, o Options, until time.Time) ([][][]float64, error) {
	scores := make([][][]float64, len(x.images))
	first := firstTap()
	if h != nil {
		first = 0
	}
	var next atomic.Int64
	err := o.Workers.Each(ctx, max(o.Workers.Threads, 1), func(running context.Context, _ int) error {
		observer, err := e.Observer()
		if err != nil {
			return err
		}
		defer observer.Close()
		var scorer *heads.Scorer
		if h != nil {
			if scorer, err = h.Scorer(); err != nil {
				return err
			}
			defer scorer.Close()
		}
		var buffer []byte
		for {
			if !until.IsZero() && next.Load() >= calibration.MinImages && time.Now().After(until) {
				return nil
			}
			k := int(next.Add(1)) - 1
			if k >= len(x.images) {
				return nil
			}
			rows := make([][]float64, x.images[k].Grid.Len())
			for tile := range rows {
				image, err := x.data.Image(x.images[k].First+tile, &buffer)
				if err != nil {
					return err
				}
				maps, err := observer.See(running, image, first)
				if err != nil {
					return err
				}
				fold, seen := k%x.folds, maps
				if x.places != nil {
					seen = x.places.deviations(maps, x.images[k].Grid.Place(tile), fold)
				}
				inside := x.patchesInside(image)
				rows[tile] = s.members(fold, seen, inside)
				if scorer != nil {
					var finest []bool
					if inside != nil {
						finest = inside[0]
					}
					peak, err := scorer.Peak(running, heads.Unseen(fold), maps, finest)
					if err != nil {
						return err
					}
					rows[tile] = withHead(rows[tile], peak)
				}
			}
			scores[k] = rows
		}
	})
	if err != nil {
		return nil, err
	}
	// Workers finish each image that they start.
	done := min(int(next.Load()), len(scores))
	if done < len(scores) {
		x.data.Warn("there was time to calibrate on %d of %d images", done, len(scores))
	}
	return scores[:done], nil
}

// calibrateTiles is calibrate for the member scores of tiles, by image, tile and member,
// with the heads' if there are any.
func (x *tiled) calibrateTiles(scores [][][]float64, h *heads.Heads, o Options) (*calibration.Calibration, *models.TileCalibration, error) {
	weights := o.Without.weights(models.Members(false))
	if h != nil {
		at := models.PatchMembers(false)
		others := make([][][]float64, len(scores))
		var flat [][]float64
		for k, rows := range scores {
			for _, row := range rows {
				others[k] = append(others[k], slices.Delete(slices.Clone(row), at, at+1))
			}
			flat = append(flat, others[k]...)
		}
		c, _, err := calibration.FitTiles(others, weights, o.FalseAlarmRate)
		if err != nil {
			return nil, nil, err
		}
		weights = withHead(weights, headWeightBy(c, flat, h.Anomalies, weights))
	}
	return calibration.FitTiles(scores, weights, o.FalseAlarmRate)
}
