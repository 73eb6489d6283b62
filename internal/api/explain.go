package api

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gofiber/fiber/v2"
)

// heatmapSuffix is the suffix of the routes that answer with a PNG.
const heatmapSuffix = "/heatmap"

var errManyHeatmaps = badRequest("A heatmap needs exactly one image, and several were sent")

// parseExplain reports whether the request asks for an explanation of its results, and
// whether it asks for the heatmap alone, as a PNG.
func parseExplain(c *fiber.Ctx, f *form) (explain, png bool, err error) {
	// The request's path may differ from the route's in case and by a final slash.
	if strings.HasSuffix(c.Route().Path, heatmapSuffix) {
		if len(f.lists["imageFile"]) > 1 {
			return false, false, errManyHeatmaps
		}
		return true, true, nil
	}
	text := f.text("explain")
	if text == "" {
		return false, false, nil
	}
	if explain, err = strconv.ParseBool(text); err != nil {
		return false, false, badRequest(fmt.Sprintf("The field explain must be true or false, got %.40q", text))
	}
	return explain, false, nil
}
