package decision

import (
	"context"
	"time"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/extractor"
)

// Each image is scored by statistics fitted without its fold. There are manyFolds for
// fewer than fewImages images, and fewFolds otherwise.
const manyFolds, fewFolds, fewImages = 10, 5, 40

// reference holds the normal images to learn from and their features.
type reference struct {
	data     *dataset.Dataset
	order    []int         // of the images, random
	features [][][]float32 // by image and feature map
	maps     []extractor.Map
	folds    int
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
	x.folds = manyFolds
	if x.len() >= fewImages {
		x.folds = fewFolds
	}
	x.folds = min(x.folds, x.len())
	return nil
}
