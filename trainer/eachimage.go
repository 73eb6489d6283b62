package trainer

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/internal/dataset"
)

// eachInTime calls f with the images of a data set in an order, on o.Threads workers, and
// returns how many of the first images are done. f gets the position in the order and
// must not keep the image. When until is not zero, no image is started after it once
// atLeast are. It returns the first error, or the context's cause when ctx ends; the
// number is 0 then.
func eachInTime(ctx context.Context, data *dataset.Dataset, order []int, atLeast int64, until time.Time, o Options,
	f func(ctx context.Context, i int, image []byte) error,
) (int, error) {
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
			image, err := data.Image(order[i], &buffer)
			if err != nil {
				return err
			}
			if err := f(running, i, image); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return 0, err
	}
	// Workers finish each image that they start, so the first of them are all done.
	return min(int(next.Load()), len(order)), nil
}
