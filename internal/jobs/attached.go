package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// ErrExists is returned when a job is begun under the id of another.
var ErrExists = errors.New("there is a job with this id already: choose another")

const (
	// attachedKept is how long an attached job is kept after its end, so that those that
	// watch it receive its last state.
	attachedKept = 30 * time.Second
	// maxAttachedEnded is the maximum number of attached jobs that are kept after their
	// end.
	maxAttachedEnded = 100
)

// Attached holds the jobs that a request waits for. They are in memory only: the client
// of such a job is gone when the process ends, so that nothing of it must survive. The
// number of running ones is bounded by the requests. The zero value is not usable; see
// NewAttached. Attached may be used concurrently.
type Attached struct {
	mu     sync.Mutex
	jobs   map[string]*AttachedJob
	number uint64
}

// AttachedJob is a job that a request waits for.
type AttachedJob struct {
	of     *Attached
	cancel context.CancelCauseFunc

	// The mutex of Attached guards the rest.
	job      Job
	number   uint64 // in the order of the beginnings
	revision uint64
	notified time.Time     // when waiters were last woken for progress
	changed  chan struct{} // closed when the job changes or is removed
	expiry   *time.Timer   // removes the job; nil before its end
}

// NewAttached returns an Attached without jobs.
func NewAttached() *Attached { return &Attached{jobs: map[string]*AttachedJob{}} }

// Begin adds a queued job and returns it with its context, which ends with ErrCancelled
// when Delete cancels the job. An empty id means a random one. Begin returns ErrExists if
// the id is in use. An id may be used again when its job has ended.
func (a *Attached) Begin(ctx context.Context, id, kind string) (*AttachedJob, context.Context, error) {
	id = cmp.Or(id, newID())
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.jobs[id]; old != nil {
		if !old.job.State.Final() {
			return nil, nil, ErrExists
		}
		a.remove(old)
	}
	a.number++
	ctx, cancel := context.WithCancelCause(ctx)
	j := &AttachedJob{
		of: a, cancel: cancel, number: a.number, revision: 1, changed: make(chan struct{}),
		job: Job{ID: id, Kind: kind, Attached: true, State: Queued, CreatedAt: wallTime(time.Time{}), Losses: []float64{}, Warnings: []string{}},
	}
	a.jobs[id] = j
	return j, ctx, nil
}

// ID returns the job's id.
func (j *AttachedJob) ID() string { return j.job.ID } // never changes

// Start sets the state Running.
func (j *AttachedJob) Start() {
	j.change(func(r *Job) {
		now := wallTime(r.CreatedAt)
		r.State, r.StartedAt, r.Attempts = Running, &now, 1
	})
}

// Progress sets the job's progress and the loss of each epoch so far, which it copies.
// Those that wait are woken once a second, and for each phase.
func (j *AttachedJob) Progress(p Progress, losses []float64) {
	p.omitNonFinite()
	j.of.mu.Lock()
	defer j.of.mu.Unlock()
	if j.job.State.Final() {
		return
	}
	phase := j.job.Progress.Phase
	j.job.Progress, j.job.Losses = p, append([]float64{}, losses...)
	if now := time.Now(); phase != p.Phase || now.Sub(j.notified) >= progressInterval {
		j.notified = now
		j.notify()
	}
}

// Succeed ends the job with the SHA-256 of its model in hexadecimal. It returns
// ErrCancelled if Delete has cancelled the job.
func (j *AttachedJob) Succeed(sha256 string, warnings []string) error {
	ended := j.end(Succeeded, "", func(r *Job) {
		r.Progress.Fraction = 1
		r.ModelSHA256, r.Warnings = &sha256, append([]string{}, warnings...)
	})
	if !ended {
		return ErrCancelled
	}
	return nil
}

// Fail ends the job with the reason, a sentence for its user. It does nothing if the job
// has ended.
func (j *AttachedJob) Fail(reason string) { j.end(Failed, reason, func(*Job) {}) }

// Cancel ends the job without a reason. It does nothing if the job has ended.
func (j *AttachedJob) Cancel() { j.end(Cancelled, "", func(*Job) {}) }

// Release removes the job soon, which must have ended.
func (j *AttachedJob) Release() {
	a := j.of
	a.mu.Lock()
	defer a.mu.Unlock()
	if j.expiry != nil || a.jobs[j.job.ID] != j {
		return
	}
	j.expiry = time.AfterFunc(attachedKept, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.remove(j)
	})
	var ended []*AttachedJob
	for _, other := range a.jobs {
		if other.expiry != nil {
			ended = append(ended, other)
		}
	}
	if len(ended) > maxAttachedEnded {
		a.remove(slices.MinFunc(ended, func(x, y *AttachedJob) int { return cmp.Compare(x.number, y.number) }))
	}
}

// end ends the job unless it has ended, and its context in any case. It reports whether
// the job had not ended.
func (j *AttachedJob) end(s State, reason string, more func(*Job)) bool {
	ended := j.change(func(r *Job) {
		r.end(s, reason)
		more(r)
	})
	j.cancel(context.Canceled)
	return ended
}

// change changes a job that has not ended. It reports whether it did.
func (j *AttachedJob) change(f func(*Job)) bool {
	j.of.mu.Lock()
	defer j.of.mu.Unlock()
	if j.job.State.Final() {
		return false
	}
	f(&j.job)
	j.notify()
	return true
}

// notify wakes those that wait for a change. The mutex must be held.
func (j *AttachedJob) notify() {
	j.revision++
	close(j.changed)
	j.changed = make(chan struct{})
}

// remove removes a job. The mutex must be held.
func (a *Attached) remove(j *AttachedJob) {
	if a.jobs[j.job.ID] != j {
		return
	}
	delete(a.jobs, j.job.ID)
	if j.expiry != nil {
		j.expiry.Stop()
	}
	j.notify()
}

// Has reports whether there is a job with an id.
func (a *Attached) Has(id string) bool {
	_, err := a.Get(id)
	return err == nil
}

// Get returns a job. It returns ErrUnknown if there is none.
func (a *Attached) Get(id string) (Job, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if j := a.jobs[id]; j != nil {
		return j.job, nil
	}
	return Job{}, ErrUnknown
}

// List returns all jobs, the newest first.
func (a *Attached) List() []Job {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := []Job{}
	for _, j := range slices.SortedFunc(maps.Values(a.jobs), func(x, y *AttachedJob) int { return cmp.Compare(y.number, x.number) }) {
		list = append(list, j.job)
	}
	return list
}

// Wait is Queue.Wait.
func (a *Attached) Wait(ctx context.Context, id string, after uint64) (Job, uint64, error) {
	for {
		a.mu.Lock()
		j := a.jobs[id]
		if j == nil {
			a.mu.Unlock()
			return Job{}, 0, ErrUnknown
		}
		job, revision, changed := j.job, j.revision, j.changed
		a.mu.Unlock()
		if revision > after {
			return job, revision, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Job{}, 0, context.Cause(ctx)
		}
	}
}

// Model returns ErrNoModel, or ErrUnknown: the answer of its request has the model of an
// attached job.
func (a *Attached) Model(_ context.Context, id string) (*Content, error) {
	if _, err := a.Get(id); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w: it is in the answer of its request", ErrNoModel)
}

// Delete cancels a job, or removes it if it has ended, as Queue.Delete.
func (a *Attached) Delete(_ context.Context, id string) (job Job, removed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	j := a.jobs[id]
	if j == nil {
		return Job{}, false, ErrUnknown
	}
	if j.job.State.Final() {
		a.remove(j)
		return j.job, true, nil
	}
	j.job.end(Cancelled, "")
	j.notify()
	j.cancel(ErrCancelled)
	return j.job, false, nil
}
