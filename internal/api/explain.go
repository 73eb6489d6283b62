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

// explainOverlay is the value of the field explain for a heatmap without the image.
const explainOverlay = "overlay"

// explanation is what a request wants beside the verdict.
type explanation struct {
	wanted  bool
	overlay bool // the heatmap without the image
	png     bool // the heatmap alone
}

// parseExplain returns what the request wants beside its verdicts.
func parseExplain(c *fiber.Ctx, f *form) (x explanation, err error) {
	// The request's path may differ from the route's in case and by a final slash.
	if strings.HasSuffix(c.Route().Path, heatmapSuffix) {
		if len(f.lists["imageFile"]) > 1 {
			return x, errManyHeatmaps
		}
		return explanation{wanted: true, png: true}, nil
	}
	switch text := f.text("explain"); text {
	case "":
	case explainOverlay:
		return explanation{wanted: true, overlay: true}, nil
	default:
		if x.wanted, err = strconv.ParseBool(text); err != nil {
			return x, badRequest(fmt.Sprintf("The field explain must be true, false or overlay, got %.40q", text))
		}
	}
	return x, nil
}
