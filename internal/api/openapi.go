package api

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/gofiber/fiber/v2"
	"gopkg.in/yaml.v3"
)

// openapiYAML is the OpenAPI 3.1 description of every endpoint. It is written by hand:
// the handlers stream their forms, so that no generator can find the fields.
//
//go:embed openapi.yaml
var openapiYAML []byte

// openapiJSON returns the description as JSON.
var openapiJSON = sync.OnceValues(func() ([]byte, error) {
	var document map[string]any
	if err := yaml.Unmarshal(openapiYAML, &document); err != nil {
		return nil, fmt.Errorf("api: openapi.yaml: %w", err)
	}
	return json.Marshal(document)
})

// serveOpenAPI answers GET /openapi.json.
func serveOpenAPI(c *fiber.Ctx) error {
	document, err := openapiJSON()
	if err != nil {
		return err
	}
	c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
	return c.Send(document)
}
