package api

import (
	"net/http"
	"slices"

	"github.com/deepmed/anomaly/internal/telemetry"
	"github.com/gofiber/fiber/v2"
)

// trace begins the span of a request, in the trace that its headers name, and makes it the
// parent of all that the request does. Endpoints that are polled have none.
func (s *Server) trace(c *fiber.Ctx, id string) telemetry.Span {
	if !telemetry.On() || slices.Contains(quietRoutes, c.Path()) {
		return telemetry.Span{}
	}
	ctx, span := telemetry.BeginServer(telemetry.Extract(s.base, requestHeaders{c}), c.Method())
	span.String("http.request.id", id)
	c.Locals(baseKey, ctx)
	return span
}

// endRequestSpan ends the span of a request. Its name has the route and not the path, which
// may have names of models.
func endRequestSpan(span telemetry.Span, method, route string, status int) {
	span.Name(method + " " + route)
	span.String("http.request.method", method)
	span.String("http.route", route)
	span.Int("http.response.status_code", status)
	if status >= fiber.StatusInternalServerError {
		span.Fail(http.StatusText(status))
	}
	span.End(nil)
}

// requestHeaders is the headers of a request, in which a trace may come. Values are copied:
// fiber reuses their memory.
type requestHeaders struct{ c *fiber.Ctx }

func (h requestHeaders) Get(key string) string { return string([]byte(h.c.Get(key))) }

func (h requestHeaders) Set(string, string) {}

func (h requestHeaders) Keys() []string { return []string{"traceparent", "tracestate"} }
