package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"regexp"
	"slices"
	"time"

	"github.com/gofiber/fiber/v2"
)

// safeHeaders are on every answer: none is a page, and none may be kept, framed
// or taken for another type.
var safeHeaders = [][2]string{
	{fiber.HeaderXContentTypeOptions, "nosniff"},
	{fiber.HeaderContentSecurityPolicy, "default-src 'none'; frame-ancestors 'none'"},
	{fiber.HeaderXFrameOptions, "DENY"},
	{fiber.HeaderReferrerPolicy, "no-referrer"},
	{fiber.HeaderCacheControl, "no-store"},
}

// observe gives every request an id and safe headers, and logs and counts it
// when it is done.
func (s *Server) observe(c *fiber.Ctx) error {
	started := time.Now()
	id := c.Get(fiber.HeaderXRequestID)
	if !plainID.MatchString(id) {
		id = newID()
	}
	c.Locals(idKey, id)
	c.Locals(beganKey, started)
	uploads := &share{of: &s.memory}
	c.Locals(shareKey, uploads)
	defer uploads.giveBack()
	c.Set(fiber.HeaderXRequestID, id)
	for _, h := range safeHeaders {
		c.Set(h[0], h[1])
	}
	s.metrics.underway.Inc()
	defer s.metrics.underway.Dec()
	if err := c.Next(); err != nil {
		if err := s.answer(c, err); err != nil {
			return err
		}
	}
	route, status, took := routeOf(c), c.Response().StatusCode(), time.Since(started)
	method, label := methodOf(c)
	s.metrics.request(label, route, status, took)
	level := slog.LevelInfo
	if slices.Contains(quietRoutes, route) && status < fiber.StatusBadRequest {
		level = slog.LevelDebug
	}
	s.log.Log(context.Background(), level, "request", slog.String("id", id), slog.String("method", method), slog.String("path", c.Path()),
		slog.Int("status", status), slog.Duration("took", took))
	return nil
}

// unobserved answers what is no HTTP, which never comes to observe.
func (s *Server) unobserved(c *fiber.Ctx, err error) error {
	if requestID(c) == "" {
		defer func() { s.metrics.request("none", noRoute, c.Response().StatusCode(), 0) }()
	}
	return s.answer(c, err)
}

// quietRoutes are asked every few seconds; their answers are logged only at the
// level debug.
var quietRoutes = []string{pathHealth, pathLive, pathReady, pathMetrics, pathInferenceLive, pathInferenceReady}

// routeOf is the route that answered a request, noRoute where none did. The
// middlewares are at "/".
func routeOf(c *fiber.Ctx) string {
	if r := c.Route().Path; r != "/" {
		return r
	}
	return noRoute
}

type localsKey int

const (
	idKey       localsKey = iota // string
	beganKey                     // time.Time
	deadlineKey                  // time.Time, where the route has one
	methodKey                    // string, where Fiber does not know the method
	shareKey                     // *share
)

// plainID is what an id of a client's may look like; any other is replaced.
var plainID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func requestID(c *fiber.Ctx) string {
	id, _ := c.Locals(idKey).(string)
	return id
}

// arrival is when the request's headers were there.
func arrival(c *fiber.Ctx) time.Time {
	if t, ok := c.Locals(beganKey).(time.Time); ok {
		return t
	}
	return time.Now()
}
