package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
)

const (
	pathJobs = "/jobs"
	pathJob  = pathJobs + "/:id"
	// jobKind is the kind of a job that trains a model.
	jobKind = "train"
)

var errJobTooLong = &problem{fiber.StatusServiceUnavailable, "The job took longer than this service allows; send less, or set max_seconds"}

// jobService is the queue of jobs and its worker. Without a folder for data, the queue
// is opened with the first job: a service without jobs needs no memory for it.
type jobService struct {
	server     *Server
	tempParent string
	mu         sync.Mutex
	queue      *jobs.Queue // nil before the first job
	temp       *tempDir    // of the queue; nil with Options.DataDir
	worker     sync.WaitGroup
	closed     bool
	attached   *jobs.Attached // the jobs of /train
}

// open returns the queue, and opens it if necessary.
func (j *jobService) open() (*jobs.Queue, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.queue != nil:
		return j.queue, nil
	case j.closed:
		return nil, errShuttingDown
	}
	s := j.server
	o := jobs.Options{MaxJobs: s.options.StoredJobs, MaxAge: s.options.JobAge, MaxBytes: s.options.JobBytes, Log: s.log}
	if s.options.DataDir != "" {
		o.Dir = filepath.Join(s.options.DataDir, "jobs")
	} else {
		parent := j.tempParent
		if parent == "" {
			parent = os.TempDir()
		}
		temp, err := lockedTempDir(parent, jobsPrefix)
		if err != nil {
			return nil, err
		}
		j.temp = temp
		o.Dir = filepath.Join(temp.path, jobsStore)
	}
	queue, err := jobs.Open(s.base, o)
	if err != nil {
		if j.temp != nil {
			err = errors.Join(err, j.temp.Close())
			j.temp = nil
		}
		return nil, err
	}
	j.queue = queue
	j.worker.Go(func() {
		queue.Run(s.accepting, s.base, jobs.Worker{
			Admit: func(ctx context.Context) (func(), error) {
				return s.trainingSlots.release, s.trainingSlots.wait(ctx)
			},
			Run:   s.runJob,
			Ended: s.jobEnded,
		})
	})
	j.worker.Go(func() { queue.Notify(s.accepting, s.callBack) })
	return queue, nil
}

// existing returns the queue, or nil before the first job.
func (j *jobService) existing() *jobs.Queue {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.queue
}

// stats returns the number of jobs in each state and the bytes that they have.
func (j *jobService) stats() (map[jobs.State]int, int64) {
	if q := j.existing(); q != nil {
		return q.Stats()
	}
	return nil, 0
}

// close waits for the worker, which must have been stopped, and closes the queue.
func (j *jobService) close() error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	queue, temp := j.queue, j.temp
	j.queue, j.temp, j.closed = nil, nil, true
	j.mu.Unlock()
	j.worker.Wait()
	var err error
	if queue != nil {
		err = queue.Close()
	}
	if temp != nil {
		err = errors.Join(err, temp.Close())
	}
	return err
}

func (s *Server) routeJobs() {
	timeout := withTimeout(s.options.DetectTime)
	s.app.Post(pathJobs, withTimeout(s.options.TrainTime), s.submitJob)
	s.app.Get(pathJobs, timeout, s.listJobs)
	s.app.Get(pathJob, timeout, s.describeJob)
	s.app.Get(pathJob+"/events", s.jobEvents)
	s.app.Get(pathJob+"/model", timeout, s.jobModel)
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
	f, timer, err := s.receiveForm(c, workTrain, fields)
	if err != nil {
		return err
	}
	defer f.Close()
	name := f.text("name")
	if name != "" {
		if s.registry == nil {
			return errNoRegistry
		}
		if err := registry.CheckName(name); err != nil {
			return err
		}
	}
	callback := f.text("callback_url")
	if callback != "" {
		if err := s.checkCallback(callback); err != nil {
			return err
		}
	}
	// Errors in the form are answered now, and not found when the job runs.
	q, err := s.parseTraining(f)
	if err != nil {
		return err
	}
	if err := q.images.Check(); err != nil {
		return err
	}
	request := jobs.Request{Kind: jobKind, Name: name, Fields: map[string]string{}, Callback: callback, Caller: callerOf(c)}
	for key := range f.memory {
		switch key {
		case "name", "callback_url": // in the request itself
		case "baseModel", "roiFile":
			request.Files = append(request.Files, jobs.File{Name: key, Bytes: int64(len(f.memory[key])), Reader: bytes.NewReader(f.memory[key])})
		default:
			request.Fields[key] = f.text(key)
		}
	}
	for key, file := range f.files {
		info, err := file.Stat()
		if err != nil {
			return err
		}
		request.Files = append(request.Files, jobs.File{Name: key, Bytes: info.Size(), Reader: io.NewSectionReader(file, 0, info.Size())})
	}
	queue, err := s.jobs.open()
	if err != nil {
		return err
	}
	ctx, done := s.workContext(c)
	defer done()
	job, err := queue.Submit(ctx, request)
	if err != nil {
		return s.shutdownError(err)
	}
	timer.done(stageQueue)
	s.log.Info("job accepted", slog.String("id", requestID(c)), slog.String("job", job.ID))
	c.Location(pathJobs + "/" + job.ID)
	return c.Status(fiber.StatusAccepted).JSON(job)
}

// listJobs answers GET /jobs. The order is that of the creations, whatever the clock does,
// among the jobs of a store.
func (s *Server) listJobs(c *fiber.Ctx) error {
	attached, stored := s.jobs.attached.List(), []jobs.Job{}
	if q := s.jobs.existing(); q != nil {
		stored = q.List()
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
func (s *Server) runJob(ctx context.Context, t *jobs.Task) (jobs.Result, error) {
	if s.options.TrainTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.options.TrainTime, errJobTooLong)
		defer cancel()
	}
	f := newForm(0, nil)
	defer f.Close()
	result, err := s.trainJob(ctx, t, f)
	if err != nil {
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
	// Without a folder for data, there is no next process.
	if s.options.CheckpointInterval > 0 && s.options.DataDir != "" {
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
		if err := s.storeTrained(ctx, t.Job.Name, t.Job.ID, bundle); err != nil {
			if ctx.Err() != nil {
				return r, context.Cause(ctx)
			}
			r.Warnings = append(r.Warnings, fmt.Sprintf("the model was not stored as %s: %v", t.Job.Name, s.jobError(t.Job.ID, err)))
		}
	}
	r.Model = bytes.NewReader(bundle)
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
		if name == "baseModel" || name == "roiFile" {
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
	e, _, err := s.registry.Put(name, m, bundle, registry.Change{Reason: "trained by job " + job})
	if err == nil {
		s.named.of(name, e.SHA256)
	}
	return err
}

// jobError returns an error whose text is the sentence for the user of a job. An error
// of the service itself is logged, and the sentence has no detail.
func (s *Server) jobError(id string, err error) error {
	if _, message, ok := callerStatus(err); ok {
		return errors.New(message)
	}
	s.log.Error("job failed", slog.String("job", id), slog.Any("error", err))
	if isFull(err) {
		return errNoSpace
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
