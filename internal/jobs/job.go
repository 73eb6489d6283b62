package jobs

import (
	"errors"
	"io"
	"math"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
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
	ErrInUse = broker.ErrInUse
	// ErrNoResults is returned when a job has no results, or none yet.
	ErrNoResults = errors.New("the job has no results")
	// ErrKeyReused is returned when the key of a submission was used for another request.
	ErrKeyReused = errors.New("this key was used for a job with other fields or files: use a new key for a new job")
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
	// Images are the images of a job that judges some; else nil.
	Images *ImageProgress `json:"images,omitempty"`
}

// ImageProgress is the progress of a job that judges images: numbers of images. Those
// with a verdict, among which the anomalous ones are, and those without one are done.
type ImageProgress struct {
	All        int `json:"all"`
	Judged     int `json:"judged"`
	Anomalous  int `json:"anomalous"`
	Unreadable int `json:"unreadable"`
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
	// Name is the name under which the model is stored, or of the model that judges; empty for
	// none.
	Name string `json:"name,omitempty"`
	// Attached reports whether a request waits for the job, which is removed with it.
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
	// ResultsSHA256 is that of the results of a job that makes no model.
	ResultsSHA256 *string `json:"results_sha256,omitempty"`
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
	// Key, if not empty, is what the caller calls the request: another with the same key is
	// the same job.
	Key string
	// ID is the id of the job; empty for a random one, or one that belongs to Key.
	ID string
	// Attached reports whether a request of this process waits for the job; see Attend.
	Attached bool
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

// File is a file of a request.
type File struct {
	Name  string
	Bytes int64 // its size
	io.Reader
}

// Content reads a stored file; see broker.Content.
type Content = broker.Content

// ContentMemory is an estimate of the memory of a Content that is read, in bytes.
const ContentMemory = broker.ContentMemory
