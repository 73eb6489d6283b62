package api

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/gofiber/fiber/v2"
	"gopkg.in/yaml.v3"
)

// openapiYAML describes every endpoint, as OpenAPI 3.1. It is written by hand:
// what is generated from handlers that stream their forms says nothing of the
// forms.
//
//go:embed openapi.yaml
var openapiYAML []byte

// openapi is the description as JSON.
var openapi = sync.OnceValues(func() ([]byte, error) {
	var document map[string]any
	if err := yaml.Unmarshal(openapiYAML, &document); err != nil {
		return nil, fmt.Errorf("api: openapi.yaml: %w", err)
	}
	return json.Marshal(document)
})

// describeAPI answers GET /openapi.json.
func describeAPI(c *fiber.Ctx) error {
	document, err := openapi()
	if err != nil {
		return err
	}
	c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
	return c.Send(document)
}
