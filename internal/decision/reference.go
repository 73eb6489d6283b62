package decision

import (
	"context"
	"time"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/models"
)

// Images are scored by statistics fitted without them, in folds: each image alone for
// fewer than fewImages images, as far as maxFoldBytes holds the statistics of all folds,
// manyFolds otherwise. A fold's statistics are of fewer
// images than the final ones, so their scores are a little higher and the threshold
// with them: with 5 folds of 200 images 2 % of normal images were above a threshold for
// 5 %, with 10 folds 3 to 5 %, and 20 folds were hardly closer.
const fewImages, manyFolds, maxFoldBytes = 60, 10, 128 << 20

// reference holds the normal images to learn from and their features.
type reference struct {
	data     *dataset.Dataset
	order    []int         // of the images, random
	features [][][]float32 // by image and feature map
	maps     []extractor.Map
	inside   [][][]bool // by image and map: the patches that are judged; nil for all
	folds    int
	// centred returns the feature maps of image k that statistics without the fold apply
	// to; nil means the maps themselves.
	centred func(k, fold int, maps [][]float32) [][]float32
}

// deviations returns the feature maps that statistics without the fold apply to, by the
// feature maps of image k or of a synthetic anomaly on it.
func (x *reference) deviations(k, fold int, maps [][]float32) [][]float32 {
	if x.centred == nil {
		return maps
	}
	return x.centred(k, fold, maps)
}

func (x *reference) len() int { return len(x.order) }

// image returns reference image k.
func (x *reference) image(k int, buffer *[]byte) ([]byte, error) {
	return x.data.Image(x.order[k], buffer)
}

// extract computes the features of the images, of calibration.MinImages at least. If
// until is not zero, it stops then and drops the images left. The finest feature map is
// extracted only for heads.
func (x *reference) extract(ctx context.Context, e *extractor.Extractor, o Options, until time.Time) error {
	first := firstTap()
	if o.HasHeads(x.len()) {
		first = 0
	}
	features, err := e.ObserveAll(ctx, o.Workers, extractor.Request{
		Images: x.len(), First: first, Until: until, AtLeast: calibration.MinImages,
		Painter: func() func(int) ([]byte, error) {
			var buffer []byte
			return func(k int) ([]byte, error) { return x.image(k, &buffer) }
		},
	})
	if err != nil {
		return err
	}
	var order []int
	for k, maps := range features {
		if maps != nil {
			order = append(order, x.order[k])
			x.features = append(x.features, maps)
		}
	}
	x.order = order
	x.folds = x.foldCount()
	return x.setInside()
}

// setInside sets the patches of each image that are judged, if images have masks.
func (x *reference) setInside() error {
	if !x.data.Layout.Masked {
		return nil
	}
	var buffer []byte
	for k := range x.len() {
		image, err := x.image(k, &buffer)
		if err != nil {
			return err
		}
		x.inside = append(x.inside, x.patchesInside(image))
	}
	return nil
}

// patchesInside returns the patches of an image that are judged, by map; nil for all.
func (x *reference) patchesInside(image []byte) (of [][]bool) {
	l := x.data.Layout
	if !l.Masked {
		return nil
	}
	for _, m := range x.maps {
		of = append(of, extractor.Inside(m, l.Size, l.Mask(image)))
	}
	return of
}

// insideOf returns the patches of image k that are judged, by map; nil for all.
func (x *reference) insideOf(k int) [][]bool {
	if x.inside == nil {
		return nil
	}
	return x.inside[k]
}

// finestOf returns the patches of the finest map of image k that are judged; nil for all.
func (x *reference) finestOf(k int) []bool {
	if x.inside == nil {
		return nil
	}
	return x.inside[k][0]
}

// insideFinest returns finestOf of all images; nil for all patches.
func (x *reference) insideFinest() (out [][]bool) {
	for _, of := range x.inside {
		out = append(out, of[0])
	}
	return out
}

// foldCount returns the number of folds.
func (x *reference) foldCount() int {
	if x.len() >= fewImages {
		return manyFolds
	}
	floats := 0 // of one fold's patch statistics, which are most of it
	for _, m := range x.maps[firstTap():] {
		floats += m.Floats() * (models.PatchRank + 1)
	}
	return min(x.len(), max(manyFolds, maxFoldBytes/(4*floats)))
}
