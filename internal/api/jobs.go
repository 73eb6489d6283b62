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
	"github.com/deepmed/anomaly/internal/dataset"
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
	j.worker.Go(func() { queue.Notify(s.accepting, callBack) })
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

// jobQueue returns the queue. It returns jobs.ErrUnknown before the first job.
func (s *Server) jobQueue() (*jobs.Queue, error) {
	if q := s.jobs.existing(); q != nil {
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
	if q.images.Images() == 0 {
		return dataset.ErrNoImages
	}
	request := jobs.Request{Kind: jobKind, Name: name, Fields: map[string]string{}, Callback: callback}
	for key := range f.memory {
		switch key {
		case "name", "callback_url": // in the request itself
		case "baseModel":
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

// listJobs answers GET /jobs.
func (s *Server) listJobs(c *fiber.Ctx) error {
	list := []jobs.Job{}
	if q := s.jobs.existing(); q != nil {
		list = q.List()
	}
	return c.JSON(fiber.Map{"jobs": list})
}

// describeJob answers GET /jobs/{id}.
func (s *Server) describeJob(c *fiber.Ctx) error {
	queue, err := s.jobQueue()
	if err != nil {
		return err
	}
	job, err := queue.Get(jobID(c))
	if err != nil {
		return err
	}
	return c.JSON(job)
}

// jobModel answers GET /jobs/{id}/model.
func (s *Server) jobModel(c *fiber.Ctx) error {
	queue, err := s.jobQueue()
	if err != nil {
		return err
	}
	// The model is read while it is sent, after the handler has returned.
	model, err := queue.Model(s.base, jobID(c))
	if err != nil {
		return err
	}
	c.Attachment(exporter.BundleFile)
	c.Set(fiber.HeaderContentType, "application/zip")
	c.Context().SetBodyStream(model, int(model.Bytes))
	return nil
}

// deleteJob answers DELETE /jobs/{id} with the job.
func (s *Server) deleteJob(c *fiber.Ctx) error {
	queue, err := s.jobQueue()
	if err != nil {
		return err
	}
	job, removed, err := queue.Delete(s.base, jobID(c))
	if err != nil {
		return err
	}
	if removed {
		s.log.Info("job removed", slog.String("id", requestID(c)), slog.String("job", job.ID))
	} else {
		s.log.Info("job cancelled", slog.String("id", requestID(c)), slog.String("job", job.ID))
		s.metrics.jobs.WithLabelValues(string(job.State)).Inc()
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
	p := jobProgress{task: t}
	q.options.Stage = p.stage
	q.options.Progress = func(epochs trainer.Progress) {
		s.metrics.progress(epochs)
		p.epochs(epochs)
	}
	started := time.Now()
	m, recalibration, err := s.runTraining(ctx, q)
	if err != nil {
		return r, err
	}
	var bundle bytes.Buffer
	if err := exporter.WriteBundle(&bundle, m); err != nil {
		return r, err
	}
	summary := m.Metadata.Training
	r.Warnings = allWarnings(summary.Warnings, summary.Skipped, summary.SkippedFiles)
	if c := recalibration; c != nil {
		r.Warnings = append(r.Warnings, allWarnings(c.Warnings, c.Skipped, c.SkippedFiles)...)
	}
	if t.Job.Name != "" {
		// The name is set before the job has succeeded, so that a client may use it then.
		if err := s.storeTrained(ctx, t.Job.Name, t.Job.ID, bundle.Bytes()); err != nil {
			if ctx.Err() != nil {
				return r, context.Cause(ctx)
			}
			r.Warnings = append(r.Warnings, fmt.Sprintf("the model was not stored as %s: %v", t.Job.Name, s.jobError(t.Job.ID, err)))
		}
	}
	s.log.Info("model trained", slog.String("job", t.Job.ID), slog.Int("images", summary.Images),
		slog.Int("skipped", summary.Skipped), slog.Int("level", q.options.Level), slog.Int("image_size", q.options.ImageSize),
		slog.Any("warnings", summary.Warnings), slog.Any("skipped_files", summary.SkippedFiles),
		slog.Float64("threshold", m.Metadata.Threshold), slog.Duration("took", time.Since(started)))
	r.Model = &bundle
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
		if name == "baseModel" {
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

// stageStart is the fraction of a training at which a stage begins: an estimate, which
// fits trainings of a few hundred images.
var stageStart = map[trainer.Stage]float64{
	trainer.StageReadingImages:          0,
	trainer.StageExtractingFeatures:     0.05,
	trainer.StageTrainingHeads:          0.2,
	trainer.StageMeasuringDetectability: 0.5,
	trainer.StageEpochs:                 0.55,
	trainer.StageCalibrating:            0.95,
}

// jobProgress converts the stages and epochs of a training into the progress of a job.
type jobProgress struct {
	task *jobs.Task
	last jobs.Progress
}

func (p *jobProgress) stage(stage trainer.Stage) {
	p.last.Phase = string(stage)
	p.last.Fraction = max(p.last.Fraction, stageStart[stage])
	p.last.SecondsLeft = nil
	p.task.Progress(p.last)
}

func (p *jobProgress) epochs(e trainer.Progress) {
	const from, to = trainer.StageEpochs, trainer.StageCalibrating
	share := float64(e.Step) / float64(max(e.Steps, 1))
	loss, left := e.Loss, e.Remaining.Seconds()
	p.last.Epoch, p.last.Epochs, p.last.Loss, p.last.SecondsLeft = e.Epoch, e.Epochs, &loss, &left
	p.last.Fraction = max(p.last.Fraction, stageStart[from]+share*(stageStart[to]-stageStart[from]))
	p.task.Progress(p.last)
}
