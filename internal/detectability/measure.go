package detectability

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/models"
	"golang.org/x/sync/errgroup"
)

// ErrScore is returned, wrapped, when a judge gives a score that is no finite number.
var ErrScore = errors.New("detectability: the score is no finite number")

// DefaultPerCell is how many images each share is of unless Options say otherwise:
// each form twice brighter and twice darker. At 256 pixels that makes 466 verdicts,
// and a share of a half has a standard error of 0.14.
const DefaultPerCell = 12

// Judge returns the anomaly score of a prepared image, side×side×3 bytes, which it
// must not keep. image is the number of the normal image that the pixels are, or
// that an anomaly was painted on: the judge must not have learnt from that one, or
// the result tells of images that the model knows, of which it finds more. Several
// goroutines call it at once.
type Judge func(ctx context.Context, image int, pixels []byte) (score float64, err error)

// Options of a measurement.
type Options struct {
	// PerCell is how many images each share is of, best a multiple of 6, which has
	// each form as often brighter as darker; 0 means DefaultPerCell.
	PerCell int
	// Threads is how many images are judged at once; 0 means one. The result does
	// not depend on it.
	Threads int
	// Budget is how long Measure may take; 0 means as long as it takes. One image of
	// each size and contrast is judged whatever it is; what is measured beyond that
	// depends on the machine then, and so does the result.
	Budget time.Duration
}

// Measure paints anomalies on normal images and counts what scores above the
// threshold. The result depends on the images, the judge and the random numbers,
// and on time where there is a budget. It returns ErrImages and ErrScore, wrapped,
// the judge's error, and the context's cause when that ends first.
func Measure(ctx context.Context, images Images, judge Judge, threshold float64, r *rand.Rand, o Options) (*models.Detectability, error) {
	deadline := time.Time{}
	if o.Budget > 0 {
		deadline = time.Now().Add(o.Budget)
	}
	if o.PerCell == 0 {
		o.PerCell = DefaultPerCell
	}
	p, err := NewPlan(images, o.PerCell, r)
	if err != nil {
		return nil, err
	}
	scores := make([]float64, p.Len())
	for i := range scores {
		scores[i] = math.NaN() // not judged
	}
	var next atomic.Int64
	group, running := errgroup.WithContext(ctx)
	for range max(1, o.Threads) {
		group.Go(func() error {
			paint := p.Painter()
			for i := int(next.Add(1)) - 1; i < p.Len(); i = int(next.Add(1)) - 1 {
				if running.Err() != nil {
					return context.Cause(running)
				}
				if i >= p.first(1) && !deadline.IsZero() && time.Now().After(deadline) {
					return nil
				}
				pixels, err := paint(i)
				if err != nil {
					return err
				}
				if scores[i], err = judge(running, p.Image(i), pixels); err != nil {
					return err
				}
				if math.IsNaN(scores[i]) || math.IsInf(scores[i], 0) {
					return fmt.Errorf("%w: %v", ErrScore, scores[i])
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return p.Result(scores, threshold)
}
