package clusterfaults

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	mrand "math/rand/v2"
	"mime/multipart"
	"net/http"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
)

// form is a request of the load: a training and the SHA-256 of its zip in an undisturbed run, or
// images with the verdicts of the command line as CSV.
type form struct {
	body     []byte
	kind     string
	sum      string
	verdicts []byte
}

// newForm returns a form with a zip.
func newForm(zipped []byte, fields map[string]string) (*form, error) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part, err := w.CreateFormFile("zipFile", "a.zip")
	if err == nil {
		_, err = part.Write(zipped)
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if err == nil {
			err = w.WriteField(name, fields[name])
		}
	}
	if err == nil {
		err = w.Close()
	}
	return &form{body: b.Bytes(), kind: w.FormDataContentType()}, err
}

// client sends requests to any of the services, as one behind a load balancer.
type client struct {
	http     http.Client
	services []*process
}

func newClient(services []*process) *client {
	return &client{services: services, http: http.Client{
		Timeout:   90 * time.Second,
		Transport: &http.Transport{MaxIdleConnsPerHost: 4, ResponseHeaderTimeout: 60 * time.Second},
	}}
}

// answer is the answer to a request.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// once sends a request to one of the services.
func (c *client) once(ctx context.Context, method, path, kind string, header map[string]string, body []byte) (answer, error) {
	to := c.services[mrand.IntN(len(c.services))]
	r, err := http.NewRequestWithContext(ctx, method, "http://"+to.address+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	res, err := c.http.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, data}, err
}

// retryPause is the pause of a client after a failure.
const retryPause = 200 * time.Millisecond

// retried sends a request until it is answered with another status than 503. It must be one
// that can be repeated.
func (c *client) retried(ctx context.Context, method, path, kind string, header map[string]string, body []byte) (answer, error) {
	for {
		// A service that is stopped accepts the connection, and does not answer.
		limited, cancel := context.WithTimeout(ctx, 25*time.Second)
		a, err := c.once(limited, method, path, kind, header, body)
		cancel()
		if err == nil && a.status != http.StatusServiceUnavailable {
			return a, nil
		}
		select {
		case <-ctx.Done():
			return a, context.Cause(ctx)
		case <-time.After(retryPause):
		}
	}
}

// submit submits a job.
func (c *client) submit(ctx context.Context, f *form) (jobs.Job, error) {
	key := rand.Text()
	a, err := c.retried(ctx, "POST", "/jobs", f.kind, map[string]string{"Idempotency-Key": key}, f.body)
	if err != nil {
		return jobs.Job{}, err
	}
	if a.status != http.StatusAccepted {
		return jobs.Job{}, fmt.Errorf("POST /jobs: status %d: %.300s", a.status, a.body)
	}
	var j jobs.Job
	return j, json.Unmarshal(a.body, &j)
}

// end waits for the end of a job.
func (c *client) end(ctx context.Context, id string) (jobs.Job, error) {
	for {
		j, err := c.job(ctx, id)
		if err != nil || j.State.Final() {
			return j, err
		}
		select {
		case <-ctx.Done():
			return j, fmt.Errorf("the job %s is %s after the end: %w", id, j.State, context.Cause(ctx))
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func (c *client) job(ctx context.Context, id string) (j jobs.Job, err error) {
	a, err := c.retried(ctx, "GET", "/jobs/"+id, "", nil, nil)
	if err != nil {
		return j, err
	}
	if a.status != http.StatusOK {
		return j, fmt.Errorf("GET /jobs/%s: status %d: %.300s", id, a.status, a.body)
	}
	return j, json.Unmarshal(a.body, &j)
}

// list returns all jobs.
func (c *client) list(ctx context.Context) ([]jobs.Job, error) {
	a, err := c.retried(ctx, "GET", "/jobs", "", nil, nil)
	if err != nil {
		return nil, err
	}
	var list struct{ Jobs []jobs.Job }
	return list.Jobs, json.Unmarshal(a.body, &list)
}

// modelSum returns the SHA-256 of the model of a job.
func (c *client) modelSum(ctx context.Context, id string) (string, error) {
	a, err := c.retried(ctx, "GET", "/jobs/"+id+"/model", "", nil, nil)
	if err != nil {
		return "", err
	}
	if a.status != http.StatusOK {
		return "", fmt.Errorf("GET /jobs/%s/model: status %d: %.300s", id, a.status, a.body)
	}
	sum := sha256.Sum256(a.body)
	return hex.EncodeToString(sum[:]), nil
}
