package trainer

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// inParallel calls f with each number below n, at most as many calls at once as
// the options have threads, each with the options' niceness. It returns the first
// error, which ends the context of the others, or the cause of ctx when that ended.
func (o Options) inParallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	group, running := errgroup.WithContext(ctx)
	group.SetLimit(o.Threads)
	for i := range n {
		group.Go(o.worker(func() error {
			if running.Err() != nil {
				return context.Cause(running)
			}
			return f(running, i)
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
