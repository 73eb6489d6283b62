package api

import (
	"slices"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// placeholderMethod replaces methods that Fiber does not support. Fiber itself would
// answer those in plain text and without a request id. No endpoint uses TRACE, so that
// the request is answered 404 or 405 as any other.
const placeholderMethod = fiber.MethodTrace

// otherMethod is the metrics' label for methods that Fiber does not support.
const otherMethod = "other"

// acceptAnyMethod passes requests with any method on to the routes.
func acceptAnyMethod(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(c *fasthttp.RequestCtx) {
		if method := string(c.Method()); !slices.Contains(fiber.DefaultMethods, method) {
			c.SetUserValue(methodKey, method)
			c.Request.Header.SetMethod(placeholderMethod)
		}
		next(c)
	}
}

// methodOf returns the request's method as the client sent it, and its label in the
// metrics.
func methodOf(c *fiber.Ctx) (method, label string) {
	if m, ok := c.Locals(methodKey).(string); ok {
		return m, otherMethod
	}
	// Fiber reuses the memory of its string after the request.
	if i := slices.Index(fiber.DefaultMethods, c.Method()); i >= 0 {
		return fiber.DefaultMethods[i], fiber.DefaultMethods[i]
	}
	return c.Method(), otherMethod
}
