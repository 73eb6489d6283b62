package jobs

import (
	"errors"
	"math"
	"time"
)

// Errors of the queue.
var (
	// ErrUnknown is returned when there is no job with the id.
	ErrUnknown = errors.New("no such job")
	// ErrNoModel is returned when a job has no model, or none yet.
	ErrNoModel = errors.New("the job has no model")
	// ErrFull is returned when the bytes that the queue may store are used.
	ErrFull = errors.New("the store of jobs is full: remove finished jobs, or try again later")
	// ErrNoSpace is returned when the disk has too little space left.
	ErrNoSpace = errors.New("the disk of the jobs has too little space left: remove finished jobs, or try again later")
	// ErrTooMany is returned when as many jobs wait as the queue may keep.
	ErrTooMany = errors.New("too many jobs are waiting, try again later")
	// ErrInUse is returned when another process has the folder open.
	ErrInUse = errors.New("another service keeps its jobs in this folder")
	// ErrCancelled is the cause of the context of a job that Delete has cancelled.
	ErrCancelled = errors.New("the job was cancelled")
)

// State is the state of a job.
type State string

// The states of a job. The last three are final.
const (
	Queued    State = "queued"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Final reports whether a job in the state has ended.
func (s State) Final() bool { return s == Succeeded || s == Failed || s == Cancelled }

// States lists all states.
func States() []State { return []State{Queued, Running, Succeeded, Failed, Cancelled} }

// Progress is the progress of a job.
type Progress struct {
	Phase    string  `json:"phase"`    // for a person to read; empty before the first
	Fraction float64 `json:"fraction"` // of the whole job, 0 to 1; an estimate
	Epoch    int     `json:"epoch"`    // from 1; 0 before the epochs
	Epochs   int     `json:"epochs"`
	// Loss and SecondsLeft are nil while they are not known.
	Loss        *float64 `json:"loss"`
	SecondsLeft *float64 `json:"seconds_left"`
}

// omitNonFinite omits values that JSON has no numbers for.
func (p *Progress) omitNonFinite() {
	for _, v := range []**float64{&p.Loss, &p.SecondsLeft} {
		if *v != nil && (math.IsNaN(**v) || math.IsInf(**v, 0)) {
			*v = nil
		}
	}
}

// Job describes a job. Its JSON is the response of GET /jobs/{id}.
type Job struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
	Name string `json:"name,omitempty"` // under which the model is stored; empty for none
	// Attached reports whether a request waits for the job, which is then in memory only.
	Attached bool  `json:"attached,omitempty"`
	State    State `json:"state"`

	CreatedAt time.Time  `json:"created_at"`
	StartedAt *time.Time `json:"started_at"` // of the last attempt
	EndedAt   *time.Time `json:"ended_at"`
	// Attempts is how often the job was started. It is above 1 if the process ended
	// while the job was running.
	Attempts int      `json:"attempts"`
	Progress Progress `json:"progress"`
	// Losses are the mean losses of the epochs so far. They are nil only in lists of jobs,
	// a thousand of which would have megabytes of them.
	Losses []float64 `json:"losses,omitzero"`
	// Error is the reason of the state Failed.
	Error    *string  `json:"error"`
	Warnings []string `json:"warnings"` // never nil
	// ModelSHA256 is the SHA-256 of the model's file, in hexadecimal.
	ModelSHA256 *string `json:"model_sha256"`
}

// Request is a job to be done.
type Request struct {
	Kind, Name string
	Fields     map[string]string
	Files      []File
	// Callback is the URL for Notify; empty for none.
	Callback string
	// Caller is who submits the job. Jobs of several callers are run in turns.
	Caller string
}

// record is what is stored of a job. Its JSON is the value of the job's key.
type record struct {
	Job
	Fields      map[string]string `json:"fields,omitempty"`
	Files       []string          `json:"files,omitempty"`        // names of the uploads; none once the job has ended
	UploadBytes int64             `json:"upload_bytes,omitempty"` // of Files
	ModelBytes  int64             `json:"model_bytes,omitempty"`
	Callback    string            `json:"callback,omitempty"` // that is not delivered yet
	// Deaths is how often the process ended while the job was running, without giving
	// it back.
	Deaths int `json:"deaths,omitempty"`
	// Turn is the name of the caller in subjects.
	Turn string `json:"turn"`
	// Number is the place of the job in the order of submissions, and EndNumber in the
	// order of ends; both from the same counter. The times are those of a clock that may
	// be set.
	Number    uint64 `json:"number"`
	EndNumber uint64 `json:"end_number,omitempty"`
}

// bytes returns the bytes that the job has in the store, and those that it may still
// need for its model.
func (r *record) bytes() int64 {
	if r.State.Final() {
		return r.UploadBytes + r.ModelBytes
	}
	return r.UploadBytes + modelReserve
}

// end sets the final state. It must not be called for a job that has ended.
func (j *Job) end(s State, reason string) {
	since := j.CreatedAt
	if j.StartedAt != nil {
		since = *j.StartedAt
	}
	now := wallTime(since)
	j.State, j.EndedAt = s, &now
	if s == Failed {
		j.Error = &reason
	}
	j.Progress.SecondsLeft = nil
}

// requeue sets the state of a job that waits for another attempt.
func (j *Job) requeue() {
	j.State, j.StartedAt, j.Progress, j.Losses = Queued, nil, Progress{}, []float64{}
}
