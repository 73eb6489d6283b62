package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
)

const (
	pathJobs = "/jobs"
	pathJob  = pathJobs + "/:id"
)

var errJobTooLong = &problem{fiber.StatusServiceUnavailable, "The job took longer than this service allows; send less, or set max_seconds"}

func (s *Server) routeJobs() {
	timeout := withTimeout(s.options.DetectTime)
	s.app.Post(pathJobs, withTimeout(s.options.TrainTime), s.submitJob)
	s.app.Get(pathJobs, timeout, s.listJobs)
	s.app.Get(pathJob, timeout, s.describeJob)
	s.app.Get(pathJob+"/events", s.jobEvents)
	s.app.Get(pathJob+"/model", timeout, s.jobModel)
	s.app.Get(pathJob+"/results", timeout, s.jobResults)
	s.app.Delete(pathJob, timeout, s.deleteJob)
}

// jobID returns a copy of the job's id in the path. Fiber reuses the memory of its
// string for the next request.
func jobID(c *fiber.Ctx) string { return strings.Clone(c.Params("id")) }

// jobStore is what jobs.Queue and jobs.Attached have in common.
type jobStore interface {
	Get(id string) (jobs.Job, error)
	Wait(ctx context.Context, id string, after uint64) (jobs.Job, uint64, error)
	Model(ctx context.Context, id string) (*jobs.Content, error)
	Delete(ctx context.Context, id string) (job jobs.Job, removed bool, err error)
}

// storeOf returns the store to look for a job in. It returns jobs.ErrUnknown if there is
// no such job for certain.
func (j *jobService) storeOf(id string) (jobStore, error) {
	if j.attached.Has(id) {
		return j.attached, nil
	}
	if q := j.existing(); q != nil {
		return q, nil
	}
	return nil, jobs.ErrUnknown
}

// submitJob answers POST /jobs, when the upload is stored durably.
func (s *Server) submitJob(c *fiber.Ctx) error {
	fields := s.trainingFields()
	fields["name"] = field{maxBytes: maxFieldBytes}
	fields["callback_url"] = field{maxBytes: maxCallbackURL}
	maps.Copy(fields, s.detectJobFields())
	f, timer, err := s.receiveForm(c, workTrain, fields)
	if err != nil {
		return err
	}
	defer f.Close()
	callback := f.text("callback_url")
	if callback != "" {
		if err := s.checkCallback(callback); err != nil {
			return err
		}
	}
	key, err := idempotencyKey(c)
	if err != nil {
		return err
	}
	var request jobs.Request
	switch kind := f.text("kind"); kind {
	case "", jobs.KindTrain:
		request, err = s.trainRequest(f)
	case kindDetect:
		request, err = s.detectRequest(c, f)
	default:
		err = badRequest(fmt.Sprintf("The field kind is %.40q, expected train or detect", kind))
	}
	if err != nil {
		return err
	}
	request.Callback, request.Caller, request.Key = callback, callerOf(c), key
	queue, err := s.jobs.open()
	if err != nil {
		return err
	}
	ctx, done := s.workContext(c)
	defer done()
	job, before, err := queue.SubmitOnce(ctx, request)
	if err != nil {
		return s.shutdownError(err)
	}
	if before {
		c.Set(headerReplayed, "true")
	}
	timer.done(stageQueue)
	s.log.Info("job accepted", slog.String("id", requestID(c)), slog.String("job", job.ID))
	c.Location(pathJobs + "/" + job.ID)
	return c.Status(fiber.StatusAccepted).JSON(job)
}

// trainRequest returns the request of a job that trains a model.
func (s *Server) trainRequest(f *form) (r jobs.Request, err error) {
	name := f.text("name")
	if name != "" {
		if s.registry == nil {
			return r, errNoRegistry
		}
		if err := registry.CheckName(name); err != nil {
			return r, err
		}
	}
	// Errors in the form are answered now, and not found when the job runs.
	q, err := s.parseTraining(f)
	if err != nil {
		return r, err
	}
	if err := q.images.Check(); err != nil {
		return r, err
	}
	r, err = s.requestOf(f)
	r.Name = name
	return r, err
}

// memoryFiles are the files of a training that its form has in memory.
var memoryFiles = []string{"baseModel", "roiFile"}

// requestOf returns the fields and files of the form of a training as those of a job.
func (s *Server) requestOf(f *form) (jobs.Request, error) {
	request := jobs.Request{Kind: jobs.KindTrain, Fields: map[string]string{}}
	for key := range s.trainingFields() {
		data, inMemory := f.memory[key]
		switch {
		case f.files[key] != nil:
			upload, err := spooledFile(f, key)
			if err != nil {
				return request, err
			}
			request.Files = append(request.Files, upload)
		case !inMemory:
		case slices.Contains(memoryFiles, key):
			request.Files = append(request.Files, jobs.File{Name: key, Bytes: int64(len(data)), Reader: bytes.NewReader(data)})
		default:
			request.Fields[key] = f.text(key)
		}
	}
	return request, nil
}

// spooledFile returns a spooled part as a file of a job.
func spooledFile(f *form, name string) (jobs.File, error) {
	info, err := f.files[name].Stat()
	if err != nil {
		return jobs.File{}, err
	}
	return jobs.File{Name: name, Bytes: info.Size(), Reader: io.NewSectionReader(f.files[name], 0, info.Size())}, nil
}

const (
	// headerKey is what a client calls a submission. Another with the same key is the same job,
	// so that a client that got no answer may send it again.
	headerKey = "Idempotency-Key"
	// headerReplayed is "true" in the answer to a submission that was accepted before.
	headerReplayed = "Idempotent-Replayed"
	maxKeyBytes    = 255
)

var errKey = badRequest("The header " + headerKey + " must have 1 to 255 visible ASCII characters, such as a random UUID")

// idempotencyKey returns the key of a submission; empty for none.
func idempotencyKey(c *fiber.Ctx) (string, error) {
	key := strings.Clone(c.Get(headerKey))
	if len(key) > maxKeyBytes || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) || key == "" && len(c.Request().Header.Peek(headerKey)) > 0 {
		return "", errKey
	}
	return key, nil
}

// listJobs answers GET /jobs. The order is that of the creations, whatever the clock does,
// among the jobs of a store.
func (s *Server) listJobs(c *fiber.Ctx) error {
	attached, stored := s.jobs.attached.List(), []jobs.Job{}
	if q := s.jobs.existing(); q != nil {
		stored = slices.DeleteFunc(q.List(), func(j jobs.Job) bool { return s.jobs.attached.Has(j.ID) })
	}
	list := make([]jobs.Job, 0, len(attached)+len(stored))
	for len(attached)+len(stored) > 0 {
		from := &stored
		if len(stored) == 0 || len(attached) > 0 && attached[0].CreatedAt.After(stored[0].CreatedAt) {
			from = &attached
		}
		j := (*from)[0]
		j.Losses = nil
		list, *from = append(list, j), (*from)[1:]
	}
	return c.JSON(fiber.Map{"jobs": list})
}

// describeJob answers GET /jobs/{id}.
func (s *Server) describeJob(c *fiber.Ctx) error {
	id := jobID(c)
	store, err := s.jobs.storeOf(id)
	if err != nil {
		return err
	}
	job, err := store.Get(id)
	if err != nil {
		return err
	}
	return c.JSON(job)
}

// jobModel answers GET /jobs/{id}/model.
func (s *Server) jobModel(c *fiber.Ctx) error {
	id := jobID(c)
	store, err := s.jobs.storeOf(id)
	if err != nil {
		return err
	}
	// The model is read while it is sent, after the handler has returned.
	model, err := store.Model(s.base, id)
	if err != nil {
		return err
	}
	if err := reservationOf(c).reserve(jobs.ContentMemory); err != nil {
		return err
	}
	c.Attachment(exporter.BundleFile)
	c.Set(fiber.HeaderContentType, "application/zip")
	reservationOf(c).stream(c, model, model.Bytes, jobs.ContentMemory)
	return nil
}

// deleteJob answers DELETE /jobs/{id} with the job.
func (s *Server) deleteJob(c *fiber.Ctx) error {
	id := jobID(c)
	store, err := s.jobs.storeOf(id)
	if err != nil {
		return err
	}
	job, removed, err := store.Delete(s.base, id)
	if err != nil {
		return err
	}
	s.removePieces(job)
	if removed {
		s.log.Info("job removed", slog.String("id", requestID(c)), slog.String("job", job.ID))
	} else {
		s.log.Info("job cancelled", slog.String("id", requestID(c)), slog.String("job", job.ID))
		if !job.Attached { // see jobEnded
			s.metrics.jobs.WithLabelValues(string(job.State)).Inc()
		}
	}
	return c.JSON(job)
}

// runJob trains the model of a job. Its errors are sentences for the job's user.
func (s *Server) runJob(queue context.Context, t *jobs.Task) (jobs.Result, error) {
	ctx := queue
	if s.options.TrainTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.options.TrainTime, errJobTooLong)
		defer cancel()
	}
	f := newForm(0, nil)
	defer f.Close()
	result, err := s.trainJob(ctx, t, f)
	if err != nil {
		if errors.Is(err, broker.ErrUnavailable) || queue.Err() != nil {
			return jobs.Result{}, err // the job was stopped, or is done again
		}
		return jobs.Result{}, s.jobError(t.Job.ID, err)
	}
	return result, nil
}

// trainJob reads the request of a job into f and trains its model.
func (s *Server) trainJob(ctx context.Context, t *jobs.Task, f *form) (r jobs.Result, err error) {
	if err := s.readJob(ctx, t, f); err != nil {
		return r, err
	}
	q, err := s.parseTraining(f)
	if err != nil {
		return r, err
	}
	if q.maxTime > 0 {
		q.end = time.Now().Add(q.maxTime)
	}
	if left, limited := t.Left(ctx); limited { // of a request, whose upload and time in the queue count
		q.end = time.Now().Add(left)
	}
	// Without a folder for data or a cluster, there is no next process.
	if s.options.CheckpointInterval > 0 && (s.options.DataDir != "" || s.options.Broker != nil) {
		q.options.Checkpoints = &trainer.Checkpoints{
			Save: t.SaveCheckpoint, Load: t.LoadCheckpoint, Interval: s.options.CheckpointInterval,
			Failed: func(err error) {
				s.log.Warn("a checkpoint cannot be used", slog.String("job", t.Job.ID), slog.Any("error", err))
			},
		}
	}
	m, recalibration, err := s.trainReporting(ctx, q, t, slog.String("job", t.Job.ID))
	if err != nil {
		return r, err
	}
	bundle, err := bundleOf(m)
	if err != nil {
		return r, err
	}
	r.Warnings = trainingWarnings(m, recalibration)
	if t.Job.Name != "" {
		// The name is set before the job has succeeded, so that a client may use it then.
		if err := t.Check(ctx); err != nil {
			return r, err
		}
		if err := s.storeTrained(ctx, t.Job.Name, t.Job.ID, bundle); err != nil {
			if ctx.Err() != nil {
				return r, context.Cause(ctx)
			}
			if errors.Is(err, broker.ErrUnavailable) {
				return r, err
			}
			r.Warnings = append(r.Warnings, fmt.Sprintf("the model was not stored as %s: %v", t.Job.Name, s.jobError(t.Job.ID, err)))
		}
	}
	r.Model = bytes.NewReader(bundle)
	if t.Job.Attached {
		r.Meta = map[string]string{}
		trainingHeaders(m, recalibration, func(name, value string) { r.Meta[name] = value })
	}
	return r, nil
}

// readJob reads the fields and files of a job's request.
func (s *Server) readJob(ctx context.Context, t *jobs.Task, f *form) error {
	for name, value := range t.Fields {
		f.memory[name] = []byte(value)
	}
	for _, name := range t.Files {
		content, err := t.Open(ctx, name)
		if err != nil {
			return err
		}
		if slices.Contains(memoryFiles, name) {
			if f.memory[name], err = io.ReadAll(content); err != nil {
				return err
			}
			continue
		}
		file, err := os.CreateTemp(s.options.TempDir, "upload-*")
		if err != nil {
			return err
		}
		f.files[name] = file
		if _, err := io.Copy(file, content); err != nil {
			return err
		}
	}
	return nil
}

// storeTrained stores the model that a job has trained under a name.
func (s *Server) storeTrained(ctx context.Context, name, job string, bundle []byte) error {
	m, err := models.Read(bundle, s.options.Models)
	if err != nil {
		return err
	}
	if ctx.Err() != nil { // cancelled meanwhile
		return context.Cause(ctx)
	}
	if err := s.checkDisk(len(bundle)); err != nil {
		return err
	}
	e, _, err := s.registry.Put(ctx, name, m, bundle, registry.Change{Reason: "trained by job " + job})
	if err == nil {
		s.named.monitors.Of(name, e.SHA256)
	}
	return err
}

// jobFailure is the reason why a job failed, with the status for a request that waits for it.
type jobFailure struct {
	status  int
	message string
}

func (f *jobFailure) Error() string { return f.message }

// Code implements jobs.Coded.
func (f *jobFailure) Code() int { return f.status }

// jobError returns an error whose text is the sentence for the user of a job. An error
// of the service itself is logged, and the sentence has no detail.
func (s *Server) jobError(id string, err error) error {
	if status, message, ok := callerStatus(err); ok {
		return &jobFailure{status, message}
	}
	s.log.Error("job failed", slog.String("job", id), slog.Any("error", err))
	if isFull(err) {
		return &jobFailure{errNoSpace.status, errNoSpace.message}
	}
	return errors.New("The service failed; its log has the reason under the job " + id)
}

// jobEnded counts and logs a job.
func (s *Server) jobEnded(j jobs.Job) {
	s.metrics.jobs.WithLabelValues(string(j.State)).Inc()
	reason := ""
	if j.Error != nil {
		reason = *j.Error
	}
	s.log.Info("job ended", slog.String("job", j.ID), slog.String("state", string(j.State)), slog.Int("attempts", j.Attempts), slog.String("error", reason))
}
