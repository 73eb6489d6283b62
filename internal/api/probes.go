package api

import (
	"github.com/deepmed/anomaly/internal/broker"
	"github.com/gofiber/fiber/v2"
)

// The paths of the endpoints for operators.
const (
	pathHealth  = "/health"
	pathLive    = "/livez"
	pathReady   = "/readyz"
	pathMetrics = "/metrics"
	pathOpenAPI = "/openapi.json"

	// The probes of the Open Inference Protocol.
	pathInferenceLive  = "/v2/health/live"
	pathInferenceReady = "/v2/health/ready"
)

// health answers GET /health.
func (s *Server) health(c *fiber.Ctx) error {
	provider, reason := s.engine.Provider()
	_, version := s.engine.Library()
	return c.JSON(fiber.Map{
		"status":                    "healthy",
		"service":                   ServiceName,
		"execution_provider":        provider,
		"execution_provider_reason": reason,
		"onnxruntime":               version,
		"threads":                   s.engine.Threads(),
		"loaded_models":             s.cache.Stats().Models,
	})
}

// live answers GET /livez, always with 200. It must not depend on the load: a busy
// service that is restarted has more to do afterwards.
func (s *Server) live(c *fiber.Ctx) error { return c.JSON(fiber.Map{"status": "alive"}) }

// ready answers GET /readyz: 200 if the service accepts work and has read the models
// in its folder.
func (s *Server) ready(c *fiber.Ctx) error {
	if err := s.checkReady(); err != nil {
		return err
	}
	return c.JSON(fiber.Map{"status": "ready"})
}

// checkReady returns errShuttingDown, errNotReady or broker.ErrUnavailable if the service is not
// ready.
func (s *Server) checkReady() error {
	if s.draining.Load() {
		return errShuttingDown
	}
	if s.options.ProbesOnly && !s.options.Broker.Conn.IsConnected() {
		return broker.ErrUnavailable // a worker can do nothing
	}
	if !s.modelsRead() {
		return errNotReady
	}
	return nil
}
