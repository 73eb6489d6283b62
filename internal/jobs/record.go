package jobs

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"sync"
)

// record is what is stored of a job. Its JSON is the value of the job's key. Programs of
// several versions may change a record in a cluster: members may be added, with a zero value
// that means what was before; none may change its meaning.
type record struct {
	Job
	Fields map[string]string `json:"fields,omitempty"`
	Files  []string          `json:"files,omitempty"` // names of the uploads; none once the job has ended
	// Uploads is the part between the id and the name in the stored names of Files; empty for
	// none. Two nodes that receive submissions with the same key do not write the same files.
	Uploads     string `json:"uploads,omitempty"`
	UploadBytes int64  `json:"upload_bytes,omitempty"` // of Files
	ModelBytes  int64  `json:"model_bytes,omitempty"`  // of the result, of any kind
	// Result is the stored name of the result after the id; empty for modelFile.
	Result   string `json:"result,omitempty"`
	Callback string `json:"callback,omitempty"` // that is not delivered yet
	// Deaths is how often the process ended while the job was running, without giving
	// it back. In a cluster those count that came no further than DeathFraction.
	Deaths        int     `json:"deaths,omitempty"`
	DeathFraction float64 `json:"death_fraction,omitempty"`
	// Turn is the name of the caller in subjects.
	Turn string `json:"turn"`
	// Number is the place of the job in the order of submissions, and EndNumber in the
	// order of ends; both from the same counter. The times are those of a clock that may
	// be set. Numbers of two nodes of a cluster may be equal.
	Number    uint64 `json:"number"`
	EndNumber uint64 `json:"end_number,omitempty"`
	// Fingerprint is the hash of the request of a job with a key.
	Fingerprint string `json:"fingerprint,omitempty"`
	// Runner is the node of a cluster that runs the job or has ended it, and Owner the one
	// whose request waits for it.
	Runner string `json:"runner,omitempty"`
	Owner  string `json:"owner,omitempty"`
	// Meta is what Result.Meta was, and Code the code of the error of a job that failed.
	Meta map[string]string `json:"meta,omitempty"`
	Code int               `json:"code,omitempty"`
	// Trace is the trace of the submission, as telemetry.Stored returns it.
	Trace string `json:"trace,omitempty"`
	// Change is different in each write of a cluster.
	Change string `json:"change,omitempty"`

	unknown map[string]json.RawMessage // members of a later version
}

// plain is a record without its methods.
type plain record

// members returns the names of the members of a record in JSON.
var members = sync.OnceValue(func() map[string]bool {
	names := map[string]bool{}
	var add func(t reflect.Type)
	add = func(t reflect.Type) {
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Anonymous {
				add(f.Type)
				continue
			}
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
				names[name] = true
			}
		}
	}
	add(reflect.TypeFor[record]())
	return names
})

// UnmarshalJSON keeps the members that this version does not have.
func (r *record) UnmarshalJSON(data []byte) error {
	if err := json.Unmarshal(data, (*plain)(r)); err != nil {
		return err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return err
	}
	r.unknown = nil
	for name, value := range all {
		if !members()[name] {
			if r.unknown == nil {
				r.unknown = map[string]json.RawMessage{}
			}
			r.unknown[name] = value
		}
	}
	return nil
}

// MarshalJSON writes also the members that UnmarshalJSON has kept.
func (r record) MarshalJSON() ([]byte, error) {
	data, err := json.Marshal(plain(r))
	if err != nil || len(r.unknown) == 0 {
		return data, err
	}
	more, err := json.Marshal(r.unknown)
	if err != nil {
		return nil, err
	}
	return append(append(bytes.TrimSuffix(data, []byte("}")), ','), more[1:]...), nil
}

// bytes returns the bytes that the job has in the store, and those that it may still
// need for its model.
func (r *record) bytes() int64 {
	if r.State.Final() {
		return r.UploadBytes + r.ModelBytes
	}
	return r.UploadBytes + modelReserve
}

// upload returns the stored name of an upload.
func (r *record) upload(name string) string {
	if r.Uploads != "" {
		return r.ID + "/" + r.Uploads + "/" + name
	}
	return r.ID + "/" + name
}

// uploads returns the stored names of all uploads.
func (r *record) uploads() []string {
	var names []string
	for _, name := range r.Files {
		names = append(names, r.upload(name))
	}
	return names
}

// result returns the stored name of the result.
func (r *record) result() string {
	if r.Result != "" {
		return r.ID + "/" + r.Result
	}
	return r.ID + "/" + modelFile
}

// keeps reports whether the job needs a stored file of the name.
func (r *record) keeps(name string) bool {
	for _, upload := range r.uploads() {
		if name == upload {
			return true
		}
	}
	return r.State == Succeeded && name == r.result()
}

// requeue sets the state of a job that waits for another attempt.
func (r *record) requeue() {
	r.State, r.StartedAt, r.Progress, r.Losses, r.Runner = Queued, nil, Progress{}, []float64{}, ""
}
