package trainer

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// inParallel calls f with each number below n, on as many goroutines as the options
// have threads, each with the options' niceness, for which it must keep a thread of its
// own: so there are no more of them than run at once. It returns the first error, which
// ends the context of the others, or the cause of ctx when that ended.
func (o Options) inParallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	group, running := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(o.Threads, n) {
		group.Go(o.worker(func() error {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if running.Err() != nil {
					return context.Cause(running)
				}
				if err := f(running, i); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}
