package decision

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/models"
)

const (
	// maxPlaceBytes bounds the memory of the sums of features by place and fold.
	maxPlaceBytes = 256 << 20
	// placePrior is the number of images with the mean variance that the variance of a
	// patch at a place is shrunk by.
	placePrior = 10
)

// ErrPlaces is returned, wrapped, when statistics by place are asked for and the images do
// not allow them.
var ErrPlaces = errors.New("the images have no statistics by place")

// places holds, by place of the tile in the image, the mean of the features at each patch
// and the scale of their deviation from it; without each fold, and of all images. Features
// are standardized by channel before they are summed.
type places struct {
	maps  []extractor.Map // of models.Taps
	count int             // places
	folds int
	// images is the number of images by fold; the last element is of all.
	images []int
	// mean and precision standardize the channels, by map.
	mean, precision [][]float32
	// sums are the sums of features, and squares of their squares over the channels, by
	// fold (the last is of all), map and place.
	sums, squares [][][]float32
	// outside are the patches that are not judged, by map and place; nil if all are. They
	// are in no sum.
	outside [][]bool
}

// choosePlaces sets x.places if the statistics are to be by place, and completes the
// description of the tiles. Unless budget is 0, the means are of as many images as that time
// allows for.
func (x *tiled) choosePlaces(ctx context.Context, e *extractor.Extractor, t *models.Tiles, o Options, budget time.Duration) error {
	if t.Statistics == models.TilesAlike {
		return nil
	}
	grid := x.images[0].Grid
	reason := ""
	for _, image := range x.images {
		if !image.Grid.Equal(grid) {
			reason = fmt.Sprintf("images of %d×%d and of %d×%d pixels have different places", grid.W, grid.H, image.Grid.W, image.Grid.H)
		}
	}
	p := &places{maps: x.maps[firstTap():], count: grid.Places(), folds: x.folds}
	if reason == "" && p.bytes() > maxPlaceBytes {
		reason = fmt.Sprintf("%d places of %d pixels are too many; use larger tiles, or a longest side", p.count, x.data.Layout.W)
	}
	if reason != "" {
		if t.Statistics == models.TilesByPlace {
			return fmt.Errorf("%w: %s", ErrPlaces, reason)
		}
		t.Statistics = models.TilesAlike
		return nil
	}
	p.standardize(x.features)
	images := x.images
	if budget > 0 {
		n := int(budget / max(x.perTile*time.Duration(p.count), 1))
		images = images[:min(len(images), max(n, calibration.MinImages))]
	}
	if err := p.setOutside(x.reference, images[0]); err != nil {
		return err
	}
	if err := p.sum(ctx, e, x.data, images, o); err != nil {
		return err
	}
	gain := p.gain()
	if t.Statistics == models.TilesByPlace || gain > placeGain {
		x.places = p
		t.Statistics, t.Columns, t.Rows = models.TilesByPlace, len(grid.Xs), len(grid.Ys)
	} else {
		t.Statistics = models.TilesAlike
	}
	t.Gain = &gain
	return nil
}

// floats returns the number of features of a tile, over all maps.
func (p *places) floats() int {
	n := 0
	for _, m := range p.maps {
		n += m.Floats()
	}
	return n
}

func (p *places) bytes() int { return 4 * p.count * p.floats() * (p.folds + 1) }

// standardize computes the mean and the precision of each channel over a sample.
func (p *places) standardize(features [][][]float32) {
	for i, m := range p.maps {
		area := m.W * m.H
		mean, precision := make([]float32, m.Channels), make([]float32, m.Channels)
		for c := range m.Channels {
			n, sum, squares := 0.0, 0.0, 0.0
			for _, maps := range features {
				for _, v := range maps[firstTap()+i][c*area : (c+1)*area] {
					sum += float64(v)
					squares += float64(v) * float64(v)
				}
				n += float64(area)
			}
			average := sum / n
			const floor = 1e-3 // of the standard deviation of features between 0 and 6
			mean[c], precision[c] = float32(average), float32(1/max(math.Sqrt(max(squares/n-average*average, 0)), floor))
		}
		p.mean, p.precision = append(p.mean, mean), append(p.precision, precision)
	}
}

// setOutside sets the patches that are not judged by an image, which has those of all: the
// images have one size, and one region.
func (p *places) setOutside(x *reference, image dataset.Tiled) error {
	if !x.data.Layout.Masked {
		return nil
	}
	for _, m := range p.maps {
		of := make([]bool, p.count*m.Area())
		for i := range of {
			of[i] = true
		}
		p.outside = append(p.outside, of)
	}
	var buffer []byte
	for k := range image.Grid.Len() {
		pixels, err := x.data.Image(image.First+k, &buffer)
		if err != nil {
			return err
		}
		inside := x.patchesInside(pixels)[firstTap():]
		for i, m := range p.maps {
			for patch, in := range inside[i] {
				p.outside[i][image.Grid.Place(k)*m.Area()+patch] = !in
			}
		}
	}
	return nil
}

// sum sums the features of all tiles of the images. Each worker sums places of its own, in
// the order of the images, so that the sums do not depend on the number of workers.
func (p *places) sum(ctx context.Context, e *extractor.Extractor, data *dataset.Dataset, images []dataset.Tiled, o Options) error {
	p.images = make([]int, p.folds+1)
	for k := range images {
		p.images[k%p.folds]++
		p.images[p.folds]++
	}
	for range p.folds + 1 {
		var sums, squares [][]float32
		for _, m := range p.maps {
			sums, squares = append(sums, make([]float32, p.count*m.Floats())), append(squares, make([]float32, p.count*m.W*m.H))
		}
		p.sums, p.squares = append(p.sums, sums), append(p.squares, squares)
	}
	threads := max(o.Workers.Threads, 1)
	return o.Workers.Each(ctx, threads, func(running context.Context, worker int) error {
		observer, err := e.Observer()
		if err != nil {
			return err
		}
		defer observer.Close()
		var buffer []byte
		grid := images[0].Grid
		for tile := worker; tile < grid.Len(); tile += threads {
			place := grid.Place(tile)
			for k, image := range images {
				pixels, err := data.Image(image.First+tile, &buffer)
				if err != nil {
					return err
				}
				maps, err := observer.See(running, pixels, firstTap())
				if err != nil {
					return err
				}
				for _, fold := range []int{k % p.folds, p.folds} {
					p.add(fold, place, maps)
				}
			}
		}
		return nil
	})
}

// add adds the features of a tile to the sums of a fold.
func (p *places) add(fold, place int, maps [][]float32) {
	for i, m := range p.maps {
		area := m.W * m.H
		sums := p.sums[fold][i][place*m.Floats() : (place+1)*m.Floats()]
		squares := p.squares[fold][i][place*area : (place+1)*area]
		for c := range m.Channels {
			mean, precision := p.mean[i][c], p.precision[i][c]
			for patch, v := range maps[firstTap()+i][c*area : (c+1)*area] {
				if p.outside != nil && p.outside[i][place*area+patch] {
					continue
				}
				u := (v - mean) * precision
				sums[c*area+patch] += u
				squares[patch] += u * u
			}
		}
	}
}

// gain returns the share of the squared deviation of the features of held-out images, from
// the mean at their patch over all places, that the mean at their place explains. It is
// negative if places explain nothing, because the mean at a place is of fewer tiles.
func (p *places) gain() float64 {
	alike, placed := 0.0, 0.0
	for i, m := range p.maps {
		area := m.W * m.H
		shared := make([]float64, m.Floats())
		judged := make([]float64, area) // the places where a patch is judged
		for place := range p.count {
			for patch := range judged {
				if p.outside == nil || !p.outside[i][place*area+patch] {
					judged[patch]++
				}
			}
		}
		for fold := range p.folds {
			n, without := float64(p.images[fold]), float64(p.images[p.folds]-p.images[fold])
			clear(shared)
			for place := range p.count {
				for k := range shared {
					at := place*m.Floats() + k
					shared[k] += float64(p.sums[p.folds][i][at]-p.sums[fold][i][at]) / (without * max(judged[k%area], 1))
				}
			}
			for place := range p.count {
				square := 0.0
				for _, v := range p.squares[fold][i][place*area : (place+1)*area] {
					square += float64(v)
				}
				alike, placed = alike+square, placed+square
				for k, common := range shared {
					if p.outside != nil && p.outside[i][place*area+k%area] {
						continue
					}
					at := place*m.Floats() + k
					sum := float64(p.sums[fold][i][at])
					own := float64(p.sums[p.folds][i][at]-p.sums[fold][i][at]) / without
					alike += n*common*common - 2*common*sum
					placed += n*own*own - 2*own*sum
				}
			}
		}
	}
	if !(alike > 0) {
		return 0
	}
	return 1 - placed/alike
}

// at returns the means and the scales of the patches of a map at a place, without a fold;
// fold p.folds means of all images. The mean of channel c at a patch is mean(c, patch).
func (p *places) at(fold, i, place int) (mean func(c, patch int) float32, scale []float32) {
	m := p.maps[i]
	area := m.W * m.H
	all, own := p.sums[p.folds][i][place*m.Floats():], []float32(nil)
	allSquares, ownSquares := p.squares[p.folds][i][place*area:], []float32(nil)
	n := p.images[p.folds]
	if fold < p.folds {
		own, ownSquares = p.sums[fold][i][place*m.Floats():], p.squares[fold][i][place*area:]
		n -= p.images[fold]
	}
	average := func(at int) float32 {
		v := all[at]
		if own != nil {
			v -= own[at]
		}
		return v / float32(n)
	}
	scale = make([]float32, area)
	for patch := range scale {
		square := allSquares[patch]
		if ownSquares != nil {
			square -= ownSquares[patch]
		}
		variance := float64(square)
		for c := range m.Channels {
			v := float64(average(c*area + patch))
			variance -= float64(n) * v * v
		}
		// Relative to the variance of a standardized feature, which is 1.
		variance = max(variance, 0) / float64(m.Channels)
		scale[patch] = float32(math.Sqrt(float64(n+placePrior) / (variance + placePrior)))
	}
	return func(c, patch int) float32 { return p.mean[i][c] + average(c*area+patch)/p.precision[i][c] }, scale
}

// deviations returns the maps of models.Taps with the features replaced by their scaled
// deviations from those at a place, without a fold. Other maps are nil.
func (p *places) deviations(maps [][]float32, place, fold int) [][]float32 {
	out := make([][]float32, len(maps))
	for i, m := range p.maps {
		area := m.W * m.H
		mean, scale := p.at(fold, i, place)
		x := maps[firstTap()+i]
		y := make([]float32, len(x))
		for c := range m.Channels {
			for patch, s := range scale {
				at := c*area + patch
				y[at] = (x[at] - mean(c, patch)) * s
			}
		}
		out[firstTap()+i] = y
	}
	return out
}

// tensors returns the tensors of models.PlaceParameters by all images.
func (p *places) tensors(size models.Size) models.StateDict {
	var data [][]float32
	for i, m := range p.maps {
		area := m.W * m.H
		means, scales := make([]float32, 0, p.count*m.Floats()), make([]float32, 0, p.count*area)
		for place := range p.count {
			mean, scale := p.at(p.folds, i, place)
			for c := range m.Channels {
				for patch := range area {
					means = append(means, mean(c, patch))
				}
			}
			scales = append(scales, scale...)
		}
		data = append(data, means, scales)
	}
	var sd models.StateDict
	for i, t := range models.PlaceParameters(size, p.count) {
		sd = append(sd, models.Tensor{Name: t.Name, Shape: t.Shape, Data: data[i]})
	}
	return sd
}
