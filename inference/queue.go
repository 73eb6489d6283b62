package inference

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// queue holds the images that wait for one of a detector's sessions.
type queue struct {
	mu      sync.Mutex
	waiting []*job
	coming  int // expected, and not added yet
	servers int // goroutines that take from it
	running int // those of them that compute
	// changed is closed and replaced when coming falls; nil while nobody looks.
	changed chan struct{}
}

// expect announces an image that will be added, or despaired of.
func (q *queue) expect() {
	q.mu.Lock()
	q.coming++
	q.mu.Unlock()
}

// despair says that an expected image will not come.
func (q *queue) despair() {
	q.mu.Lock()
	q.fewer(1)
	q.mu.Unlock()
}

// fewer takes images off those expected. The caller holds mu.
func (q *queue) fewer(n int) {
	q.coming -= n
	if q.changed != nil {
		close(q.changed)
		q.changed = nil
	}
}

// add puts expected jobs in, and says how many servers must be started for them:
// no more than there are jobs, and lanes in all.
func (q *queue) add(jobs []*job, lanes int) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, jobs...)
	q.fewer(len(jobs))
	start := max(min(len(jobs), lanes-q.servers), 0)
	q.servers += start
	return start
}

// gather waits until so many jobs are there, nothing more is on its way, or the
// delay is over.
func (q *queue) gather(size int, delay time.Duration) {
	if delay <= 0 || size < 2 {
		return
	}
	var timer *time.Timer
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 || len(q.waiting) >= size || q.coming == 0 {
			q.mu.Unlock()
			return
		}
		if q.changed == nil {
			q.changed = make(chan struct{})
		}
		changed := q.changed
		q.mu.Unlock()
		if timer == nil {
			timer = time.NewTimer(delay)
			defer timer.Stop()
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		}
	}
}

// retire says that nothing waits, and that the server must end therefore.
func (q *queue) retire() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) > 0 {
		return false
	}
	q.servers--
	return true
}

// next takes a batch of at most size jobs: no more than their share when other
// lanes are free to take the rest. Jobs whose caller left are passed over. With
// nil the server must end.
func (q *queue) next(size, lanes int) []*job {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(j *job) bool {
		left := j.ctx.Err() != nil
		if left {
			j.err = context.Cause(j.ctx)
			close(j.done)
		}
		return left
	})
	if len(q.waiting) == 0 {
		q.servers--
		q.waiting = nil
		return nil
	}
	free := max(lanes-q.running, 1)
	n := min((len(q.waiting)+free-1)/free, size)
	jobs := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	q.running++
	return jobs
}

// finished says that a batch that next gave was computed.
func (q *queue) finished() {
	q.mu.Lock()
	q.running--
	q.mu.Unlock()
}

// together is a context that ends when the contexts of all jobs have: nobody
// waits for the batch any more. The function must be called when it was run.
func together(jobs []*job) (context.Context, func()) {
	if len(jobs) == 1 {
		return jobs[0].ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	var left atomic.Int64
	left.Store(int64(len(jobs)))
	stops := make([]func() bool, len(jobs))
	for i, j := range jobs {
		stops[i] = context.AfterFunc(j.ctx, func() {
			if left.Add(-1) == 0 {
				cancel(context.Cause(j.ctx))
			}
		})
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		cancel(context.Canceled)
	}
}
