package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/cluster"
	"github.com/deepmed/anomaly/internal/stream"
	"github.com/gofiber/fiber/v2"
)

const (
	// WorkStream is the kind of work of a process that judges the images of the stream.
	WorkStream = "stream"
	// streamPending is the number of images that all workers together have at once.
	streamPending = 1000
)

// startStream answers requests over NATS, and judges the stream of images, as the options say.
func (n *node) startStream() (err error) {
	s := n.server
	if n.role() == cluster.RoleServe {
		if n.unserve, err = stream.Serve(s.options.Broker, s.judgeMessage, s.log); err != nil {
			return err
		}
	}
	if !slices.Contains(s.options.Work, WorkStream) {
		return nil
	}
	o := stream.Options{
		Bytes: s.options.StreamBytes, VerdictBytes: s.options.StreamBytes, MaxPending: streamPending,
		Parallel: cap(s.detectionSlots.slots), Judge: s.judgeMessage, Log: s.log,
	}
	n.tasks.Go(func() {
		for s.accepting.Err() == nil {
			err := stream.Work(s.accepting, s.base, s.options.Broker, o)
			if s.accepting.Err() != nil {
				return
			}
			s.log.Error("cannot read the stream of images", slog.Any("error", err))
			select {
			case <-s.accepting.Done():
			case <-time.After(10 * time.Second):
			}
		}
	})
	return nil
}

// judgeMessage judges an image of a NATS message. Its JSON is that of /models/{name}/detect.
func (s *Server) judgeMessage(ctx context.Context, image stream.Image) stream.Answer {
	r, version, err := s.judgeOne(ctx, image)
	if err == nil {
		var body []byte
		if body, err = json.Marshal(r); err == nil {
			return stream.Answer{Status: fiber.StatusOK, Body: body, Version: version}
		}
	}
	status, message, known := callerStatus(s.shutdownError(err))
	switch {
	case known:
	case isFull(err):
		status, message = errNoSpace.status, errNoSpace.message
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		status, message = errTooLong.status, errTooLong.message
	default:
		id := newID()
		s.log.Error("an image cannot be judged", slog.String("id", id), slog.String("name", image.Model), slog.Any("error", err))
		status, message = fiber.StatusInternalServerError, "The service failed; its log has the reason under the id "+id
	}
	body, _ := json.Marshal(fiber.Map{"error": message}) // a string
	return stream.Answer{Status: status, Body: body, Again: status >= fiber.StatusInternalServerError || errors.Is(err, broker.ErrUnavailable)}
}

func (s *Server) judgeOne(ctx context.Context, image stream.Image) (r imageResult, version string, err error) {
	switch {
	case s.draining.Load():
		return r, "", errShuttingDown
	case len(image.Data) == 0:
		return r, "", errNoImage
	case int64(len(image.Data)) > s.options.Images.MaxBytes:
		return r, "", checkSize("imageFile", int64(len(image.Data)), s.options.Images.MaxBytes)
	}
	var explain explanation
	if image.Explain == explainOverlay {
		explain = explanation{wanted: true, overlay: true}
	} else if image.Explain != "" {
		if explain.wanted, err = strconv.ParseBool(image.Explain); err != nil {
			return r, "", badRequest("The header Explain must be true, false or overlay")
		}
	}
	memory := &reservation{budget: &s.memory}
	defer memory.release()
	if err := memory.reserve(len(image.Data)); err != nil {
		return r, "", err
	}
	timer := s.metrics.timer(workDetect, time.Now())
	if image.Wait {
		err = s.detectionSlots.wait(ctx)
	} else {
		err = s.detectionSlots.acquire(ctx)
	}
	if err != nil {
		return r, "", err
	}
	defer s.detectionSlots.release()
	timer.done(stageQueue)
	j, version, err := s.namedJudge(ctx, image.Model)
	if err != nil {
		return r, "", err
	}
	defer j.release()
	timer.done(stageLoad)
	r, err = j.judge(ctx, *timer, image.Data, nil, explain)
	return r, version, err
}
