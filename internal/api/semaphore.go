package api

import (
	"context"
	"sync/atomic"
)

// semaphore is a counting semaphore with a bounded wait queue. It sheds load: a
// caller that finds the queue full fails at once.
type semaphore struct {
	slots    chan struct{}
	queued   atomic.Int64
	maxQueue int64
}

// newSemaphore returns a semaphore with slots holders and maxQueue waiters at most.
func newSemaphore(slots, maxQueue int) *semaphore {
	return &semaphore{slots: make(chan struct{}, slots), maxQueue: int64(maxQueue)}
}

// acquire takes a slot, and waits for one if none is free. It returns errBusy if the
// queue is full, and the context's cause if the context ends first. The caller must
// call release after a nil error.
func (s *semaphore) acquire(ctx context.Context) error {
	select {
	case s.slots <- struct{}{}:
		return nil
	default:
	}
	if s.queued.Add(1) > s.maxQueue {
		s.queued.Add(-1)
		return errBusy
	}
	defer s.queued.Add(-1)
	return s.wait(ctx)
}

// wait is acquire without the wait queue and its bound: for work that waits in a queue
// of its own.
func (s *semaphore) wait(ctx context.Context) error {
	select {
	case s.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// tryAcquire takes a slot if one is free.
func (s *semaphore) tryAcquire() bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *semaphore) release() { <-s.slots }

// running returns the number of slots in use.
func (s *semaphore) running() int { return len(s.slots) }

// waiting returns the length of the wait queue.
func (s *semaphore) waiting() int { return int(s.queued.Load()) }
