package api

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/models"
	"github.com/gofiber/fiber/v2"
)

// heatmapSuffix ends the routes that answer a picture instead of a verdict.
const heatmapSuffix = "/heatmap"

var errManyHeatmaps = badRequest("A heatmap is drawn of one image, and several were sent")

// wanted says what a form asks for beside the verdict: what in the image it comes
// from, and that as a picture.
func wanted(c *fiber.Ctx, f *form) (evidence, picture bool, err error) {
	// The route's path, not the request's: that may end in a slash or be in
	// capitals.
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
	if evidence, err = strconv.ParseBool(text); err != nil {
		return false, false, badRequest(fmt.Sprintf("The field explain must be true or false, got %.40q", text))
	}
	return evidence, false, nil
}

// explain judges an image and says where, by one thread in its turn.
func (s *Server) explain(ctx context.Context, laps laps, d *inference.Detector, image []byte, meta *models.Metadata) (x *inference.Explanation, err error) {
	err = s.schedule.Work(ctx, func() error {
		x, err = d.Explain(ctx, image, meta, s.options.Images)
		return err
	})
	if err == nil {
		laps.done(stageInfer)
	}
	return x, err
}
