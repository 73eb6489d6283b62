package api

import (
	"context"
	"errors"
	"log/slog"
	"regexp"

	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/telemetry"
	"github.com/gofiber/fiber/v2"
)

// headerJobID is the id of the job of a /train. A client may choose it, to follow the job
// before the answer arrives.
const headerJobID = "X-Job-Id"

// validJobID matches the ids of jobs that are accepted from clients.
var validJobID = regexp.MustCompile(`^[A-Za-z0-9_-]{8,64}$`)

var errJobID = badRequest("The header " + headerJobID + " must have 8 to 64 letters, digits, dashes and underscores")

// attachJob begins the job of a request, which then ends when the job is cancelled. The
// job must be ended and released.
func (s *Server) attachJob(c *fiber.Ctx) (*jobs.AttachedJob, error) {
	id := string([]byte(c.Get(headerJobID))) // fiber reuses the memory of its string
	if id != "" {
		if !validJobID.MatchString(id) {
			return nil, errJobID
		}
		if q := s.jobs.existing(); q != nil {
			if _, err := q.Get(id); err == nil {
				return nil, jobs.ErrExists
			}
		}
	}
	job, ctx, err := s.jobs.attached.Begin(s.base, id, jobs.KindTrain)
	if err != nil {
		return nil, err
	}
	job.Progress(jobs.Progress{Phase: "receiving the upload"}, nil)
	c.Locals(baseKey, telemetry.With(ctx, s.requestBase(c)))
	c.Set(headerJobID, job.ID())
	return job, nil
}

// requestBase returns the parent of a request's contexts. Its cause is the answer of a
// request that it ends.
func (s *Server) requestBase(c *fiber.Ctx) context.Context {
	if ctx, ok := c.Locals(baseKey).(context.Context); ok {
		return ctx
	}
	return s.base
}

// endAttached ends the job of a request whose handler returned err, unless the job has
// ended.
func (s *Server) endAttached(c *fiber.Ctx, job *jobs.AttachedJob, err error) {
	_, message, known := callerStatus(err)
	switch {
	case errors.Is(err, errClientGone):
		job.Cancel()
	case known:
		job.Fail(message)
	case errors.Is(err, context.Canceled): // see statusOf
		job.Fail(errShuttingDown.message)
	case err != nil && isFull(err):
		job.Fail(errNoSpace.message)
	default: // also a panic
		job.Fail("The service failed; its log has the reason under the id " + requestID(c))
	}
	if j, err := s.jobs.attached.Get(job.ID()); err == nil {
		s.log.Info("job ended", slog.String("id", requestID(c)), slog.String("job", j.ID), slog.String("state", string(j.State)))
	}
}
