package api

import "github.com/gofiber/fiber/v2"

// The paths for those who run the service.
const (
	pathHealth  = "/health"
	pathLive    = "/livez"
	pathReady   = "/readyz"
	pathMetrics = "/metrics"
	pathOpenAPI = "/openapi.json"

	// The same questions in the words of the Open Inference Protocol.
	pathInferenceLive  = "/v2/health/live"
	pathInferenceReady = "/v2/health/ready"
)

// live says that the process answers. It never looks at anything else: a service
// that is restarted because it is busy is busier afterwards.
func (s *Server) live(c *fiber.Ctx) error { return c.JSON(fiber.Map{"status": "alive"}) }

// ready says whether new work is taken, and the models of the folder were read.
func (s *Server) ready(c *fiber.Ctx) error {
	if s.draining.Load() {
		return errShuttingDown
	}
	if !s.modelsRead() {
		return errNotReady
	}
	return c.JSON(fiber.Map{"status": "ready"})
}
