package api

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/gofiber/fiber/v2"
)

// trainByWorkers answers a training by a worker of the cluster: the request becomes a durable
// job, which is removed when its answer is sent or its client has gone. It reports whether the
// answer is being sent; then job is released when it is sent.
func (s *Server) trainByWorkers(ctx context.Context, c *fiber.Ctx, f *form, q trainingRequest, job *jobs.AttachedJob) (sending bool, err error) {
	queue, err := s.jobs.open()
	if err != nil {
		return false, err
	}
	request, err := s.requestOf(f)
	if err != nil {
		return false, err
	}
	if q.maxTime > 0 {
		request.Fields["max_seconds"] = strconv.FormatFloat(q.maxTime.Seconds(), 'f', -1, 64)
	}
	request.ID, request.Caller, request.Attached = job.ID(), callerOf(c), true
	stop := queue.Attend(job.ID(), q.end)
	remove := func() {
		stop()
		s.removeAttached(queue, job.ID())
	}
	if _, err := queue.Submit(ctx, request); err != nil {
		remove() // it may have been accepted although the servers did not answer
		return false, err
	}
	defer func() {
		if !sending {
			remove()
		}
	}()
	done, err := s.followTraining(ctx, queue, q.end, job)
	if err != nil {
		return false, err
	}
	// The model is read while it is sent, after the handler has returned.
	model, err := queue.Model(s.base, job.ID())
	if err != nil {
		return false, err
	}
	meta, _, err := queue.Outcome(job.ID())
	if err != nil {
		return false, err
	}
	if errors.Is(context.Cause(ctx), errClientGone) { // at the last moment
		return false, errClientGone
	}
	if err := job.Succeed(*done.ModelSHA256, done.Warnings); err != nil {
		return false, err
	}
	for name, value := range meta {
		c.Set(name, value)
	}
	sendBundle(c, &closingBody{model, func() {
		job.Release()
		remove()
	}}, int(model.Bytes))
	return true, nil
}

// followTraining waits for the end of a job and passes its progress on to the one that the
// request has. A job that has not begun by end, unless that is zero, is not waited for.
func (s *Server) followTraining(ctx context.Context, queue *jobs.Queue, end time.Time, job *jobs.AttachedJob) (jobs.Job, error) {
	begin, cancel := ctx, context.CancelFunc(func() {})
	if !end.IsZero() {
		// A worker that is free begins soon, and finds out whether the time is enough.
		begin, cancel = context.WithTimeoutCause(ctx, max(time.Until(end), beginTime), errBusy)
	}
	defer func() { cancel() }()
	wait, started := begin, false
	for after := uint64(0); ; {
		j, revision, err := queue.Wait(wait, job.ID(), after)
		switch {
		case errors.Is(err, jobs.ErrUnknown):
			return j, jobs.ErrCancelled // and removed, by another request
		case err != nil:
			return j, err
		}
		after = revision
		switch j.State {
		case jobs.Running:
			if !started {
				started, wait = true, ctx
				job.Start()
			}
			job.Progress(j.Progress, j.Losses)
		case jobs.Succeeded:
			return j, nil
		case jobs.Cancelled:
			return j, jobs.ErrCancelled
		case jobs.Failed:
			_, status, err := queue.Outcome(job.ID())
			if err != nil {
				return j, err
			}
			if status == 0 {
				status = fiber.StatusInternalServerError
			}
			return j, &problem{status, *j.Error}
		}
	}
}

// beginTime is the time that a worker which is free has to begin a job.
const beginTime = 2 * time.Second

// removeTime bounds the removal of a job whose request has ended. Later it is removed as that of
// a killed process.
const removeTime = time.Minute

// removeAttached cancels and removes a job in the background.
func (s *Server) removeAttached(queue *jobs.Queue, id string) {
	s.jobs.background(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.base), removeTime)
		defer cancel()
		if err := queue.Withdraw(ctx, id); err != nil && !errors.Is(err, jobs.ErrUnknown) {
			s.log.Warn("the job of a request is removed later", slog.String("job", id), slog.Any("error", err))
		}
	})
}
