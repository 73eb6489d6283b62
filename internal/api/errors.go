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
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
)

// problem is an error with the status that says whose it is.
type problem struct {
	status  int
	message string
}

func (p *problem) Error() string { return p.message }

func badRequest(message string) *problem { return &problem{fiber.StatusBadRequest, message} }

// The errors of requests themselves. The first two are in the Python service's
// words, which clients may match.
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
	errNoToken       = &problem{fiber.StatusUnauthorized, "This service wants a token: send it as Authorization: Bearer"}
	errClientGone    = &problem{499, "The client closed the connection"}
	errNotFound      = &problem{fiber.StatusNotFound, "There is no such endpoint: use GET /health, POST /train, POST /detect or GET /models; GET /openapi.json tells all"}
	errNotAllowed    = &problem{fiber.StatusMethodNotAllowed, "This endpoint does not take that method: use GET /health, POST /train, POST /detect or GET /models; GET /openapi.json tells all"}
	errUploadTooLong = &problem{fiber.StatusRequestEntityTooLarge, "The upload is too large"}
)

// callerErrors are the errors that a caller can mend, with their status. They
// are looked through in this order.
var callerErrors = []struct {
	err    error
	status int
}{
	{trainer.ErrLevel, fiber.StatusBadRequest},
	{trainer.ErrImageSize, fiber.StatusBadRequest},
	{trainer.ErrFalseAlarmRate, fiber.StatusBadRequest},
	{trainer.ErrBase, fiber.StatusUnprocessableEntity},
	{dataset.ErrNoImages, fiber.StatusBadRequest},
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
	{models.ErrTooLarge, fiber.StatusRequestEntityTooLarge},
	{models.ErrUnsafe, fiber.StatusUnprocessableEntity},
	{models.ErrArchitecture, fiber.StatusUnprocessableEntity},
	{models.ErrMetadata, fiber.StatusUnprocessableEntity},
	{inference.ErrMeasure, fiber.StatusUnprocessableEntity},
	{inference.ErrNoMap, fiber.StatusUnprocessableEntity},
	{inference.ErrNotFinite, fiber.StatusUnprocessableEntity},
	{models.ErrFormat, fiber.StatusUnprocessableEntity},
}

// retryAfter is what a 503 tells clients to wait, in seconds.
const retryAfter = "2"

// answer turns any error of a handler into the contract's JSON. A caller's
// mistake is told in one sentence; ours gets an id that is in the log too, and
// tells nothing of the inside.
func (s *Server) answer(c *fiber.Ctx, err error) error {
	status, message := s.describe(c, err)
	if status == fiber.StatusServiceUnavailable {
		c.Set(fiber.HeaderRetryAfter, retryAfter)
	}
	return c.Status(status).JSON(fiber.Map{"error": message})
}

func (s *Server) describe(c *fiber.Ctx, err error) (int, string) {
	var p *problem
	if errors.As(err, &p) {
		return p.status, p.message
	}
	for _, known := range callerErrors {
		if errors.Is(err, known.err) {
			return known.status, sentence(err)
		}
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		s.log.Error("the disk is full", slog.String("id", requestID(c)), slog.String("path", c.Path()), slog.Any("error", err))
		return errNoSpace.status, errNoSpace.message
	}
	if errors.Is(err, context.Canceled) {
		return errShuttingDown.status, errShuttingDown.message
	}
	var f *fiber.Error
	if errors.As(err, &f) {
		switch f.Code {
		case fiber.StatusNotFound:
			return errNotFound.status, errNotFound.message
		case fiber.StatusMethodNotAllowed:
			return errNotAllowed.status, errNotAllowed.message
		case fiber.StatusRequestEntityTooLarge:
			return errUploadTooLong.status, errUploadTooLong.message
		case fiber.StatusBadRequest: // Fiber's text repeats the bytes it could not read
			return errBadHTTP.status, errBadHTTP.message
		}
		if f.Code < fiber.StatusInternalServerError {
			return f.Code, f.Message
		}
	}
	id := requestID(c)
	s.log.Error("request failed", slog.String("id", id), slog.String("path", c.Path()), slog.Any("error", err))
	return fiber.StatusInternalServerError, "The service failed; its log names the reason under " + id
}

// sentence is an error's text as a sentence on one line, of bounded length.
func sentence(err error) string {
	const longest = 500
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	// Go's errors begin in lower case, sentences do not.
	first, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(first)) + s[size:]
}
