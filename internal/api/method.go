package api

import (
	"slices"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// unheardOf stands in for methods that Fiber does not know. Fiber would answer
// those itself, with text instead of JSON and without an id; no endpoint takes
// this one.
const unheardOf = fiber.MethodTrace

// withAnyMethod lets requests of any method come to the routes.
func withAnyMethod(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(c *fasthttp.RequestCtx) {
		if method := string(c.Method()); !slices.Contains(fiber.DefaultMethods, method) {
			c.SetUserValue(methodKey, method)
			c.Request.Header.SetMethod(unheardOf)
		}
		next(c)
	}
}

// methodOf is the request's method as it came, and as a label of the metrics.
func methodOf(c *fiber.Ctx) (method, label string) {
	if m, ok := c.Locals(methodKey).(string); ok {
		return m, "other"
	}
	// Fiber's own string is gone after the request.
	if i := slices.Index(fiber.DefaultMethods, c.Method()); i >= 0 {
		return fiber.DefaultMethods[i], fiber.DefaultMethods[i]
	}
	return c.Method(), "other"
}
