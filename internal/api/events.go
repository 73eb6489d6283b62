package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/gofiber/fiber/v2"
)

const (
	headerLastEventID = "Last-Event-ID"
	mimeEventStream   = "text/event-stream"
	// eventPause is the longest time between two writes of a stream of events. A comment
	// fills longer pauses, so that proxies do not close the connection.
	eventPause = 15 * time.Second
	// maxEventStreams is the maximum number of open streams of events. Each has a
	// connection and three goroutines, and no time limit.
	maxEventStreams = 1000
)

var errManyStreams = &problem{fiber.StatusServiceUnavailable, "Too many streams of events are open, ask for GET /jobs/{id} instead, or try again in a moment"}

// The kinds of events.
const (
	eventState    = "state"
	eventProgress = "progress"
)

// jobEvents answers GET /jobs/{id}/events with an event for each change of the job. The
// id of an event is the job's revision. A client that resumes receives the latest change
// if it has not received it; the ones before are of no use to it. The stream ends after
// a final state, when the job is removed, and when the service shuts down.
func (s *Server) jobEvents(c *fiber.Ctx) error {
	if s.draining.Load() {
		return errShuttingDown
	}
	id := jobID(c)
	store, err := s.jobs.storeOf(id)
	if err != nil {
		return err
	}
	job, revision, err := store.Wait(s.base, id, 0)
	if err != nil {
		return err
	}
	last, err := strconv.ParseUint(c.Get(headerLastEventID), 10, 64)
	if err != nil || last > revision { // not an id of this job
		last = 0
	}
	if job.State.Final() && last == revision {
		// The client has everything. This status keeps browsers from connecting again.
		return c.SendStatus(fiber.StatusNoContent)
	}
	if s.eventStreams.Add(1) > maxEventStreams {
		s.eventStreams.Add(-1)
		return errManyStreams
	}
	c.Set(fiber.HeaderContentType, mimeEventStream)
	c.Set("X-Accel-Buffering", "no") // nginx
	conn := c.Context().Conn()
	c.Context().SetBodyStreamWriter(func(w *bufio.Writer) {
		defer s.eventStreams.Add(-1)
		ctx, done := watchConnection(s.accepting, conn)
		defer done()
		// The write timeout of the server is for a whole answer.
		extend := func() { _ = conn.SetWriteDeadline(time.Now().Add(writeTimeout)) }
		extend()
		_ = sendEvents(ctx, store, id, last, w, extend) // the client has gone
	})
	return nil
}

// sendEvents writes the events of a job after the revision last. It calls extend before
// each write.
func sendEvents(ctx context.Context, store jobStore, id string, last uint64, w *bufio.Writer, extend func()) error {
	// The headers are sent with the first bytes.
	if _, err := w.WriteString(": events of a job\n\n"); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	var state jobs.State
	for {
		pause, cancel := context.WithTimeout(ctx, eventPause)
		job, revision, err := store.Wait(pause, id, last)
		cancel()
		extend()
		switch {
		case err == nil:
			kind := eventProgress
			if job.State != state {
				kind = eventState
			}
			last, state = revision, job.State
			data, err := json.Marshal(job)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", revision, kind, data); err != nil {
				return err
			}
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			if _, err := w.WriteString(": \n\n"); err != nil {
				return err
			}
		default:
			return err
		}
		if err := w.Flush(); err != nil || state.Final() {
			return err
		}
	}
}
