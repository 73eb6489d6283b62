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

// ErrScore is returned, wrapped, when a ScoreFunc returns NaN or an infinity.
var ErrScore = errors.New("detectability: the score is not a finite number")

// DefaultPerCell is the default of Options.PerCell: each form twice brighter and twice
// darker. At 256 pixels that requires 466 scores, and a share of 0.5 has a standard
// error of 0.14.
const DefaultPerCell = 12

// ScoreFunc returns the anomaly score of a prepared image, which it
// must not retain. image is the index of the normal image that the pixels are derived
// from. The model must not have been trained on that image, since more anomalies are
// detected on training images than on new ones. ScoreFunc is called concurrently.
type ScoreFunc func(ctx context.Context, image int, pixels []byte) (score float64, err error)

// Options of a measurement.
type Options struct {
	// PerCell is the number of images from which each share is computed; 0 means
	// DefaultPerCell. With a multiple of 6, each form is brighter and darker equally
	// often.
	PerCell int
	// Threads is the number of images scored concurrently; 0 means one. The result
	// does not depend on it.
	Threads int
	// Budget is the time budget of Measure; 0 means none. One image of each size and
	// contrast is scored regardless. How many more are scored, and so the result,
	// depends on the speed of the machine.
	Budget time.Duration
}

// Measure generates anomalies on normal images and computes the shares that score above
// the threshold. Without a budget, the result depends only on the images, the scores and
// the random numbers. It returns ErrImages and ErrScore, wrapped, an error of score, and
// the context's cause when the context ends first.
func Measure(ctx context.Context, images Images, score ScoreFunc, threshold float64, r *rand.Rand, o Options) (*models.Detectability, error) {
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
		scores[i] = math.NaN() // not scored
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
				if scores[i], err = score(running, p.Image(i), pixels); err != nil {
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
