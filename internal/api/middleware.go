package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"time"

	"github.com/gofiber/fiber/v2"
)

// securityHeaders are set on every answer. Browsers must not cache, frame or sniff it.
// The page and its files have another policy and may be cached.
var securityHeaders = [][2]string{
	{fiber.HeaderXContentTypeOptions, "nosniff"},
	{fiber.HeaderContentSecurityPolicy, "default-src 'none'; frame-ancestors 'none'"},
	{fiber.HeaderXFrameOptions, "DENY"},
	{fiber.HeaderReferrerPolicy, "no-referrer"},
	{fiber.HeaderCacheControl, "no-store"},
}

// observe is the outermost middleware. It sets the request's id, memory reservation and
// security headers, writes the answer of a failed handler, and logs and counts the
// request.
func (s *Server) observe(c *fiber.Ctx) error {
	started := time.Now()
	id := c.Get(fiber.HeaderXRequestID)
	if !validID.MatchString(id) {
		id = newID()
	}
	c.Locals(idKey, id)
	c.Locals(receivedKey, started)
	memory := &reservation{budget: &s.memory}
	c.Locals(reservationKey, memory)
	defer memory.release()
	c.Set(fiber.HeaderXRequestID, id)
	for _, h := range securityHeaders {
		c.Set(h[0], h[1])
	}
	span := s.trace(c, id)
	s.metrics.inFlight.Inc()
	defer s.metrics.inFlight.Dec()
	if err := c.Next(); err != nil {
		if err := s.writeError(c, err); err != nil {
			return err
		}
	}
	route, status, took := routeOf(c), c.Response().StatusCode(), time.Since(started)
	method, label := methodOf(c)
	s.metrics.request(label, route, status, took)
	endRequestSpan(span, label, route, status)
	level := slog.LevelInfo
	if slices.Contains(quietRoutes, route) && status < fiber.StatusBadRequest {
		level = slog.LevelDebug
	}
	s.log.Log(context.Background(), level, "request", slog.String("id", id), slog.String("method", method), slog.String("path", c.Path()),
		slog.Int("status", status), slog.Duration("took", took))
	return nil
}

// handleFiberError answers an error that Fiber passes to its error handler: one of a
// request that is not valid HTTP, which does not reach observe.
func (s *Server) handleFiberError(c *fiber.Ctx, err error) error {
	if requestID(c) == "" {
		defer func() { s.metrics.request("none", noRoute, c.Response().StatusCode(), 0) }()
	}
	if errors.Is(err, fiber.ErrRequestTimeout) { // before the request was routed
		err = errSlowClient
	}
	return s.writeError(c, err)
}

// quietRoutes are polled every few seconds. Requests to them are logged at level debug
// unless they fail.
var quietRoutes = []string{pathHealth, pathLive, pathReady, pathMetrics, pathInferenceLive, pathInferenceReady}

// routeOf returns the path of the route that answered the request, or noRoute. "/" is
// the path of the page, and of the middlewares for a request that no route answers.
func routeOf(c *fiber.Ctx) string {
	if r := c.Route().Path; r != pathPage || c.Path() == pathPage && c.Response().StatusCode() < fiber.StatusBadRequest {
		return r
	}
	return noRoute
}

type localsKey int

const (
	idKey          localsKey = iota // string
	receivedKey                     // time.Time
	deadlineKey                     // time.Time; missing if the route has no time limit
	methodKey                       // string; only for methods that Fiber does not support
	reservationKey                  // *reservation
	baseKey                         // context.Context; see requestBase
	callerKey                       // string; see callerOf
)

// validID matches the request ids that are accepted from clients. Any other is replaced.
var validID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// newID returns a random request id of 16 hexadecimal digits.
func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// requestID returns the request's id, or "" for a request that did not reach observe.
func requestID(c *fiber.Ctx) string {
	id, _ := c.Locals(idKey).(string)
	return id
}

// receivedAt returns the time at which the request's headers were complete.
func receivedAt(c *fiber.Ctx) time.Time {
	if t, ok := c.Locals(receivedKey).(time.Time); ok {
		return t
	}
	return time.Now()
}
