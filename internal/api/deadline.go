package api

import (
	"context"
	"time"

	"github.com/gofiber/fiber/v2"
)

// withTimeout bounds the time of a route's requests, from their headers to their
// answer. A request is answered 408 if its upload is not complete by then, and 503 if
// its work is not. A limit of 0 means no bound.
func withTimeout(limit time.Duration) fiber.Handler {
	return func(c *fiber.Ctx) error {
		if limit <= 0 {
			return c.Next()
		}
		c.Locals(deadlineKey, receivedAt(c).Add(limit))
		return c.Next()
	}
}

// deadline returns the request's deadline and whether it has one.
func deadline(c *fiber.Ctx) (time.Time, bool) {
	t, ok := c.Locals(deadlineKey).(time.Time)
	return t, ok
}

// workContext returns the context of a request whose body was read to its end. The
// context ends when the client disconnects, at the request's deadline, and when the
// server shuts down or the request's job is cancelled. The caller must call the returned
// function when the request ends.
func (s *Server) workContext(c *fiber.Ctx) (context.Context, func()) {
	ctx, done := watchConnection(s.requestBase(c), c.Context().Conn())
	at, ok := deadline(c)
	if !ok {
		return ctx, done
	}
	ctx, cancel := context.WithDeadlineCause(ctx, at, errTooLong)
	return ctx, func() {
		cancel()
		done()
	}
}
