package jobs

import (
	"context"
	"strconv"
	"sync"
)

// Task is a job that runs.
type Task struct {
	Job    Job
	Fields map[string]string
	Files  []string // names

	q        *Queue
	uploads  string // record.Uploads
	owner    string // record.Owner
	trace    string // record.Trace
	phases   phases // guarded by mu
	mu       sync.Mutex
	progress Progress
	losses   []float64
	set      bool // the two above
	pending  bool // the two above were not written since they were set
}

// Open returns a reader of a file of the request, which is usable until ctx ends.
func (t *Task) Open(ctx context.Context, name string) (*Content, error) {
	r := record{Job: t.Job, Uploads: t.uploads}
	return t.q.files.OpenStored(ctx, r.upload(name))
}

// Progress sets the job's progress and the loss of each epoch so far, which it copies. It
// does not wait: progress is written once a second.
func (t *Task) Progress(p Progress, losses []float64) {
	p.omitNonFinite()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phases.set(p.Phase)
	t.progress, t.losses, t.set, t.pending = p, append(t.losses[:0], losses...), true, true
}

// takePending reports whether there is progress to write, and marks it as written.
func (t *Task) takePending() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	pending := t.pending
	t.pending = false
	return pending
}

// describe sets the progress of a record to that of the task.
func (t *Task) describe(r *record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.set {
		r.Progress, r.Losses = t.progress, append([]float64{}, t.losses...)
	}
}

// storedFiles returns the stored names of the uploads.
func (t *Task) storedFiles() []string {
	r := record{Job: t.Job, Files: t.Files, Uploads: t.uploads}
	return r.uploads()
}

// resultOf returns the name of the result after the job's id, as in a record. In a cluster each
// attempt has its own: one that goes on although another has begun does not replace the
// other's.
func (t *Task) resultOf() string {
	if t.q.b.Embedded() {
		return ""
	}
	return modelFile + "." + strconv.Itoa(t.Job.Attempts)
}

// resultName returns the stored name of the result.
func (t *Task) resultName() string {
	r := record{Job: t.Job, Result: t.resultOf()}
	return r.result()
}
