package api

import (
	"context"
	"time"

	"github.com/gofiber/fiber/v2"
)

// bounded limits the time of a route's requests, from their headers to their
// answer: what is not received by then is told 408, what is not done 503. A limit
// of 0 is none.
func bounded(limit time.Duration) fiber.Handler {
	return func(c *fiber.Ctx) error {
		if limit <= 0 {
			return c.Next()
		}
		c.Locals(deadlineKey, arrival(c).Add(limit))
		return c.Next()
	}
}

// deadline is when the request's time is over, if it has a bound.
func deadline(c *fiber.Ctx) (time.Time, bool) {
	t, ok := c.Locals(deadlineKey).(time.Time)
	return t, ok
}

// working gives the context of a request whose body was read to its end. It ends
// with the client's connection, with the request's time, and with the server.
// The returned function must be called when the request ends.
func (s *Server) working(c *fiber.Ctx) (context.Context, func()) {
	ctx, done := whileConnected(s.base, c.Context().Conn())
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
