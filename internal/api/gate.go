package api

import (
	"context"
	"sync/atomic"
)

// gate lets so many through at once and so many more wait.
type gate struct {
	places  chan struct{}
	waiting atomic.Int64
	queue   int64
}

func newGate(places, queue int) *gate {
	return &gate{places: make(chan struct{}, places), queue: int64(queue)}
}

// enter waits for a place. It returns errBusy when too many wait already, and
// the context's cause when that ends first. After nil, leave must be called.
func (g *gate) enter(ctx context.Context) error {
	select {
	case g.places <- struct{}{}:
		return nil
	default:
	}
	if g.waiting.Add(1) > g.queue {
		g.waiting.Add(-1)
		return errBusy
	}
	defer g.waiting.Add(-1)
	select {
	case g.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *gate) leave() { <-g.places }

// inside and outside are how many have a place, and how many wait for one.
func (g *gate) inside() int  { return len(g.places) }
func (g *gate) outside() int { return int(g.waiting.Load()) }
