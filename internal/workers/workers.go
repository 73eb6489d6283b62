// Package workers runs a computation on several goroutines with a thread priority. It
// must import no other package of the module.
package workers

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// MaxNiceness is the lowest thread priority.
const MaxNiceness = 19

// Pool configures the number of goroutines and their priority. The zero value is one
// goroutine with the priority of the process.
type Pool struct {
	// Threads is the number of goroutines; a number below 1 means 1.
	Threads int
	// Niceness is the niceness of each goroutine's thread, 0 to MaxNiceness. It is
	// ignored except on Linux.
	Niceness int
}

// Each calls f with each index from 0 to n-1. It returns the first error, which cancels
// the context of the other calls, or the cause of ctx if ctx has ended.
func (p Pool) Each(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	return p.EachWith(ctx, n, func(running context.Context) func(int) error {
		return func(i int) error { return f(running, i) }
	})
}

// EachWith is like Each for functions with state: it calls start once in each goroutine,
// and the returned function in that goroutine only.
func (p Pool) EachWith(ctx context.Context, n int, start func(ctx context.Context) func(i int) error) error {
	group, running := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(max(p.Threads, 1), n) {
		group.Go(p.Wrap(func() error {
			work := start(running)
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if running.Err() != nil {
					return context.Cause(running)
				}
				if err := work(i); err != nil {
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

// Wrap returns a function that calls f with the pool's niceness and converts a panic of f
// to an error: a panic in a goroutine would end the process. The goroutine that calls it
// must end afterwards, because its thread keeps the low priority and ends with it.
func (p Pool) Wrap(f func() error) func() error {
	return func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("workers: panic: %v\n%s", r, debug.Stack())
			}
		}()
		if p.Niceness > 0 {
			lowerPriority(min(p.Niceness, MaxNiceness))
		}
		return f()
	}
}

// Closed reports whether a channel that signals an end is closed. It is false for nil.
func Closed(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return false
	}
}
