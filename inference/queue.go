package inference

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// queue holds the jobs that wait for one session of a detector. Workers take batches
// from it (dynamic batching).
type queue struct {
	mu       sync.Mutex
	waiting  []*job
	reserved int // jobs that are announced and not added yet
	workers  int // goroutines that take from the queue
	running  int // workers that run a batch
	// changed is closed and set to nil when reserved falls; nil while nobody waits
	// for it.
	changed chan struct{}
}

// reserve announces a job. The caller must call add or cancel for it.
func (q *queue) reserve() {
	q.mu.Lock()
	q.reserved++
	q.mu.Unlock()
}

// cancel withdraws a reserved job.
func (q *queue) cancel() {
	q.mu.Lock()
	q.unreserve(1)
	q.mu.Unlock()
}

// unreserve ends n reservations. The caller holds mu.
func (q *queue) unreserve(n int) {
	q.reserved -= n
	if q.changed != nil {
		close(q.changed)
		q.changed = nil
	}
}

// add appends reserved jobs. It returns the number of workers that the caller must
// start: at most one for each job, and at most maxWorkers with those that exist.
func (q *queue) add(jobs []*job, maxWorkers int) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, jobs...)
	q.unreserve(len(jobs))
	start := max(min(len(jobs), maxWorkers-q.workers), 0)
	q.workers += start
	return start
}

// collect waits until size jobs are in the queue, no job is reserved, or the delay
// is over.
func (q *queue) collect(size int, delay time.Duration) {
	if delay <= 0 || size < 2 {
		return
	}
	var timer *time.Timer
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 || len(q.waiting) >= size || q.reserved == 0 {
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

// stopIfEmpty reports whether the queue is empty. If so, the calling worker is no
// longer counted and must end.
func (q *queue) stopIfEmpty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) > 0 {
		return false
	}
	q.workers--
	return true
}

// next returns a batch of at most size jobs, or fewer if other workers are free to
// take the rest. Jobs whose context has ended are dropped. If the result is nil, the
// calling worker is no longer counted and must end.
func (q *queue) next(size, maxWorkers int) []*job {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(j *job) bool {
		ended := j.ctx.Err() != nil
		if ended {
			j.err = context.Cause(j.ctx)
			close(j.done)
		}
		return ended
	})
	if len(q.waiting) == 0 {
		q.workers--
		q.waiting = nil
		return nil
	}
	free := max(maxWorkers-q.running, 1)
	n := min((len(q.waiting)+free-1)/free, size)
	jobs := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	q.running++
	return jobs
}

// finished marks a batch of next as computed.
func (q *queue) finished() {
	q.mu.Lock()
	q.running--
	q.mu.Unlock()
}

// batchContext returns a context that ends when the contexts of all jobs have ended.
// The caller must call the function when the batch is done.
func batchContext(jobs []*job) (context.Context, func()) {
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
