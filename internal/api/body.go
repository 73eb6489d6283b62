package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/gofiber/fiber/v2"
)

// bodyReader reads a request's body within its limits: BodyBytes in all, ReadPause
// between two reads, the request's deadline, and the life of the server and of the
// request's job. It must be closed.
type bodyReader struct {
	r         io.Reader
	conn      net.Conn
	remaining int64 // bytes
	pause     time.Duration
	until     time.Time       // zero for no deadline
	base      context.Context // its cause is the error of Read when it ends; see requestBase
	stop      func() bool     // unregisters from base
}

// body returns a reader of the request's body.
func (s *Server) body(c *fiber.Ctx) *bodyReader {
	var r io.Reader = c.Context().RequestBodyStream()
	if r == nil { // Body would read all of a streamed body into memory
		r = bytes.NewReader(c.Request().Body())
	}
	until, _ := deadline(c)
	b := &bodyReader{r: r, conn: c.Context().Conn(), remaining: s.options.BodyBytes, pause: s.options.ReadPause, until: until, base: s.requestBase(c)}
	// The read deadline interrupts a blocked Read.
	b.stop = context.AfterFunc(b.base, func() {
		if b.conn != nil {
			_ = b.conn.SetReadDeadline(time.Now())
		}
	})
	return b
}

// Close releases the reader's resources. It leaves the rest of the body unread.
func (b *bodyReader) Close() { b.stop() }

// Read returns errUploadTooLong, errSlowUpload, errShuttingDown or jobs.ErrCancelled if a
// limit is reached, and os.ErrDeadlineExceeded for a pause that is too long.
func (b *bodyReader) Read(p []byte) (int, error) {
	if b.remaining <= 0 {
		return 0, errUploadTooLong
	}
	now := time.Now()
	if !b.until.IsZero() && !now.Before(b.until) {
		return 0, errSlowUpload
	}
	if b.conn != nil {
		deadline := now.Add(b.pause)
		if !b.until.IsZero() && b.until.Before(deadline) {
			deadline = b.until
		}
		if err := b.conn.SetReadDeadline(deadline); err != nil {
			return 0, err
		}
	}
	// The deadline just set may have replaced the one that interrupts the read.
	if b.base.Err() != nil {
		return 0, context.Cause(b.base)
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.remaining)])
	b.remaining -= int64(n)
	switch {
	case err == nil || errors.Is(err, io.EOF):
	case b.base.Err() != nil:
		err = context.Cause(b.base)
	case errors.Is(err, os.ErrDeadlineExceeded) && !b.until.IsZero() && !time.Now().Before(b.until):
		err = errSlowUpload
	}
	return n, err
}

// reject returns err after reading on for DrainBytes and ReadPause at most. If the
// connection were closed at once, it would be reset and the client would not receive
// the answer. The bound on the time keeps clients from holding the connection with a
// few bytes now and then.
func (s *Server) reject(c *fiber.Ctx, body *bodyReader, err error) error {
	body.remaining = max(body.remaining, 0) + s.options.DrainBytes
	if until := time.Now().Add(s.options.ReadPause); body.until.IsZero() || until.Before(body.until) {
		body.until = until
	}
	if n, copyErr := io.Copy(io.Discard, io.LimitReader(body, s.options.DrainBytes)); copyErr != nil || n >= s.options.DrainBytes {
		c.Context().SetConnectionClose()
	}
	return err
}

// rejectUnread is reject for a request whose body was not read.
func (s *Server) rejectUnread(c *fiber.Ctx, err error) error {
	body := s.body(c)
	defer body.Close()
	return s.reject(c, body, err)
}

var errCutOff = badRequest("The request's body is damaged or was cut off")

// readBody reads a body that is not a form into memory, limit bytes at most. The name
// is the subject of the error for a body that is too large.
func (s *Server) readBody(c *fiber.Ctx, name string, limit int64) ([]byte, error) {
	body := s.body(c)
	defer body.Close()
	if encoding := c.Get(fiber.HeaderContentEncoding); encoding != "" && encoding != "identity" {
		return nil, s.reject(c, body, &problem{fiber.StatusUnsupportedMediaType, fmt.Sprintf("The Content-Encoding %.40q is not supported: send the body uncompressed", encoding)})
	}
	var data bytes.Buffer
	if length := int64(c.Request().Header.ContentLength()); length > 0 {
		data.Grow(int(min(length, limit, maxPrealloc)) + bytes.MinRead)
	}
	_, err := data.ReadFrom(reservingReader{io.LimitReader(body, limit+1), reservationOf(c)})
	if err != nil {
		if err = formError(err); errors.Is(err, errBadForm) {
			err = errCutOff
		}
	} else {
		err = checkSize(name, int64(data.Len()), limit)
	}
	if err != nil {
		return nil, s.reject(c, body, err)
	}
	return data.Bytes(), nil
}

// checkSize returns a 413 problem if size is above limit.
func checkSize(name string, size, limit int64) error {
	if size > limit {
		return &problem{fiber.StatusRequestEntityTooLarge, fmt.Sprintf("%s is larger than %d bytes", name, limit)}
	}
	return nil
}
