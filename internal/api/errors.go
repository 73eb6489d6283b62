package api

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/feedback"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
)

// problem is an error with its HTTP status and the message that the client receives.
type problem struct {
	status  int
	message string
}

func (p *problem) Error() string { return p.message }

func badRequest(message string) *problem { return &problem{fiber.StatusBadRequest, message} }

// Errors of single requests. Clients may match the texts of the first two, which are
// those of the Python service.
var (
	errNoZip         = badRequest("No ZIP file uploaded")
	errNoModelImage  = badRequest("Both model file and image file are required")
	errNotMultipart  = &problem{fiber.StatusUnsupportedMediaType, "The request must be multipart/form-data"}
	errBadHTTP       = badRequest("The request is not valid HTTP")
	errBadForm       = badRequest("The multipart form is damaged or was cut off")
	errSlowClient    = &problem{fiber.StatusRequestTimeout, "The upload stopped for too long"}
	errBusy          = &problem{fiber.StatusServiceUnavailable, "The service is busy, try again in a moment"}
	errNoSpace       = &problem{fiber.StatusServiceUnavailable, "The service has no disk space left for this, try again later or send less"}
	errShuttingDown  = &problem{fiber.StatusServiceUnavailable, "The service is shutting down, try again in a moment"}
	errTooLong       = &problem{fiber.StatusServiceUnavailable, "The request took longer than this service allows; send less, or a training with max_seconds"}
	errSlowUpload    = &problem{fiber.StatusRequestTimeout, "The upload took longer than this service allows"}
	errNoToken       = &problem{fiber.StatusUnauthorized, "This service requires a token: send it as Authorization: Bearer"}
	errClientGone    = &problem{499, "The client closed the connection"}
	errNotFound      = &problem{fiber.StatusNotFound, "There is no such endpoint: use GET /health, POST /train, POST /detect or GET /models; GET /openapi.json lists all"}
	errNotAllowed    = &problem{fiber.StatusMethodNotAllowed, "This endpoint does not support that method: use GET /health, POST /train, POST /detect or GET /models; GET /openapi.json lists all"}
	errUploadTooLong = &problem{fiber.StatusRequestEntityTooLarge, "The upload is too large"}
)

// callerErrors lists the errors that a client can correct, with their status. The
// first match counts.
var callerErrors = []struct {
	err    error
	status int
}{
	{trainer.ErrLevel, fiber.StatusBadRequest},
	{trainer.ErrImageSize, fiber.StatusBadRequest},
	{trainer.ErrPreprocessing, fiber.StatusBadRequest},
	{trainer.ErrTiles, fiber.StatusBadRequest},
	{trainer.ErrPlaces, fiber.StatusUnprocessableEntity},
	{inference.ErrGrid, fiber.StatusUnprocessableEntity},
	{trainer.ErrFalseAlarmRate, fiber.StatusBadRequest},
	{trainer.ErrBase, fiber.StatusUnprocessableEntity},
	{dataset.ErrNoImages, fiber.StatusBadRequest},
	{dataset.ErrLayout, fiber.StatusBadRequest},
	{trainer.ErrTooFewCalibrationImages, fiber.StatusUnprocessableEntity},
	{dataset.ErrTooLarge, fiber.StatusRequestEntityTooLarge},
	{trainer.ErrTooLittleTime, fiber.StatusUnprocessableEntity},
	{dataset.ErrNotZip, fiber.StatusUnprocessableEntity},
	{trainer.ErrDiverged, fiber.StatusUnprocessableEntity},
	{imagefile.ErrTooLarge, fiber.StatusRequestEntityTooLarge},
	{imagefile.ErrImage, fiber.StatusUnprocessableEntity},
	{registry.ErrName, fiber.StatusBadRequest},
	{registry.ErrUnknown, fiber.StatusNotFound},
	{registry.ErrBroken, fiber.StatusUnprocessableEntity},
	{registry.ErrChanged, fiber.StatusConflict},
	{registry.ErrFull, fiber.StatusConflict},
	{registry.ErrTooLarge, fiber.StatusUnprocessableEntity},
	{registry.ErrNoVersion, fiber.StatusNotFound},
	{trainer.ErrThreshold, fiber.StatusBadRequest},
	{trainer.ErrNoScores, fiber.StatusUnprocessableEntity},
	{trainer.ErrRateTooLow, fiber.StatusUnprocessableEntity},
	{feedback.ErrLabel, fiber.StatusBadRequest},
	{feedback.ErrUnknown, fiber.StatusNotFound},
	{feedback.ErrFull, fiber.StatusConflict},
	{jobs.ErrUnknown, fiber.StatusNotFound},
	{jobs.ErrNoModel, fiber.StatusConflict},
	{jobs.ErrNoResults, fiber.StatusConflict},
	{jobs.ErrExists, fiber.StatusConflict},
	{jobs.ErrCancelled, fiber.StatusConflict},
	{jobs.ErrKeyReused, fiber.StatusUnprocessableEntity},
	{jobs.ErrFull, fiber.StatusInsufficientStorage},
	{jobs.ErrNoSpace, fiber.StatusInsufficientStorage},
	{jobs.ErrTooMany, fiber.StatusServiceUnavailable},
	{models.ErrTooLarge, fiber.StatusRequestEntityTooLarge},
	{models.ErrUnsafe, fiber.StatusUnprocessableEntity},
	{models.ErrArchitecture, fiber.StatusUnprocessableEntity},
	{models.ErrMetadata, fiber.StatusUnprocessableEntity},
	{inference.ErrMeasure, fiber.StatusUnprocessableEntity},
	{inference.ErrNoMap, fiber.StatusUnprocessableEntity},
	{inference.ErrNotFinite, fiber.StatusUnprocessableEntity},
	{models.ErrFormat, fiber.StatusUnprocessableEntity},
}

// retryAfter is the Retry-After header of a 503, in seconds.
const retryAfter = "2"

// writeError answers with a handler's error, as {"error": "<one sentence>"}.
func (s *Server) writeError(c *fiber.Ctx, err error) error {
	status, message := s.statusOf(c, err)
	if status == fiber.StatusServiceUnavailable {
		c.Set(fiber.HeaderRetryAfter, retryAfter)
	}
	return c.Status(status).JSON(fiber.Map{"error": message})
}

// statusOf returns the status and the message of an error. An error of the service
// itself is logged with the request's id, and its message contains the id and no
// detail.
func (s *Server) statusOf(c *fiber.Ctx, err error) (int, string) {
	if status, message, ok := callerStatus(err); ok {
		return status, message
	}
	if isFull(err) {
		s.log.Error("disk full", slog.String("id", requestID(c)), slog.String("path", c.Path()), slog.Any("error", err))
		return errNoSpace.status, errNoSpace.message
	}
	if errors.Is(err, context.Canceled) {
		return errShuttingDown.status, errShuttingDown.message
	}
	if status, message, ok := fiberStatus(err); ok {
		return status, message
	}
	id := requestID(c)
	s.log.Error("request failed", slog.String("id", id), slog.String("path", c.Path()), slog.Any("error", err))
	return fiber.StatusInternalServerError, "The service failed; its log has the reason under the id " + id
}

// callerStatus returns the status and the message of an error that the client can
// correct, and whether err is one.
func callerStatus(err error) (status int, message string, ok bool) {
	var p *problem
	if errors.As(err, &p) {
		return p.status, p.message, true
	}
	if errors.Is(err, broker.ErrUnavailable) { // without the servers' own words
		return fiber.StatusServiceUnavailable, sentence(broker.ErrUnavailable), true
	}
	for _, known := range callerErrors {
		if errors.Is(err, known.err) {
			if errors.Is(err, trainer.ErrLevel) {
				err = trainer.ErrLevel // without the value: clients may match the sentence
			}
			return known.status, sentence(err), true
		}
	}
	return 0, "", false
}

// isFull reports whether an error is one of a full disk.
func isFull(err error) bool {
	return broker.IsNoSpace(err) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// fiberStatus returns the status and the message of a client error that Fiber found,
// and whether err is one.
func fiberStatus(err error) (status int, message string, ok bool) {
	var f *fiber.Error
	if !errors.As(err, &f) || f.Code >= fiber.StatusInternalServerError {
		return 0, "", false
	}
	switch f.Code {
	case fiber.StatusNotFound:
		return errNotFound.status, errNotFound.message, true
	case fiber.StatusMethodNotAllowed:
		return errNotAllowed.status, errNotAllowed.message, true
	case fiber.StatusRequestEntityTooLarge:
		return errUploadTooLong.status, errUploadTooLong.message, true
	case fiber.StatusBadRequest: // Fiber's text repeats the bytes that it could not parse
		return errBadHTTP.status, errBadHTTP.message, true
	}
	return f.Code, f.Message, true
}

// sentence returns an error's text as one line that begins with a capital letter, cut
// after 500 bytes.
func sentence(err error) string {
	const maxBytes = 500
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > maxBytes {
		s = strings.ToValidUTF8(s[:maxBytes], "") + "…"
	}
	first, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(first)) + s[size:]
}
