package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"strings"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/gofiber/fiber/v2"
)

var (
	errNoRegistry = &problem{fiber.StatusNotFound, "This service keeps no models: it was started without --models"}
	errNoModel    = badRequest("No model uploaded: send the file as the body, or as the part modelFile of a form")
	errNoImage    = badRequest("No image uploaded: send it as the part imageFile")
)

// openModels makes what models are kept in and run by, and starts to read those
// of the folder.
func (s *Server) openModels() error {
	var err error
	batch := s.options.Batch
	batch.Observe = func(images int, took time.Duration) {
		s.metrics.batch(images)
		if observe := s.options.Batch.Observe; observe != nil {
			observe(images, took)
		}
	}
	if s.schedule, err = inference.NewScheduler(s.engine, batch); err != nil {
		return err
	}
	if s.options.ModelsDir != "" {
		s.registry, err = registry.Open(s.options.ModelsDir, s.options.Models, s.options.StoredModels, s.log)
		if err != nil {
			return err
		}
	}
	s.cache = inference.NewCache(s.options.CacheBytes)
	if s.registry != nil {
		s.loading.Go(func() { s.registry.Load(s.base, s.warm) })
	}
	return nil
}

// warm puts a model of the folder into the cache while there is room.
func (s *Server) warm(m *models.Model) error {
	if s.cache.Room() <= 0 {
		return nil
	}
	_, release, err := s.cache.Get(s.base, m.SHA256, func() (*inference.Detector, error) { return s.detector(m) })
	if err == nil {
		release()
	}
	return err
}

// modelName is the address's model name, in memory of its own: Fiber's is used
// again for the next request.
func modelName(c *fiber.Ctx) string { return strings.Clone(c.Params("name")) }

func (s *Server) routeModels() {
	inTime := bounded(s.options.DetectTime)
	s.app.Get("/models", inTime, s.listModels)
	s.app.Get("/models/:name", inTime, s.describeModel)
	s.app.Put("/models/:name", inTime, s.putModel)
	s.app.Delete("/models/:name", inTime, s.deleteModel)
	s.app.Post("/models/:name/detect", inTime, s.detectByName)
	s.app.Post("/models/:name/detect"+heatmapSuffix, inTime, s.detectByName)
}

// listModels answers GET /models.
func (s *Server) listModels(c *fiber.Ctx) error {
	if s.registry == nil {
		return errNoRegistry
	}
	return c.JSON(fiber.Map{"models": s.registry.List()})
}

// describeModel answers GET /models/{name}.
func (s *Server) describeModel(c *fiber.Ctx) error {
	if s.registry == nil {
		return errNoRegistry
	}
	e, err := s.registry.Look(modelName(c))
	if err != nil {
		return err
	}
	return c.JSON(e)
}

// putModel answers PUT /models/{name}: the model is kept once it is known to
// run.
func (s *Server) putModel(c *fiber.Ctx) error {
	if s.draining.Load() {
		return errShuttingDown
	}
	name := modelName(c)
	if s.registry == nil {
		return s.refuseUnread(c, errNoRegistry)
	}
	if err := registry.CheckName(name); err != nil {
		return s.refuseUnread(c, err)
	}
	file, err := s.readModel(c)
	if err != nil {
		return err
	}
	ctx, done := s.working(c)
	defer done()
	if err := s.running.enter(ctx); err != nil {
		return err
	}
	defer s.running.leave()
	var m *models.Model
	err = s.schedule.Work(ctx, func() error {
		m, err = models.Read(file, s.options.Models)
		return err
	})
	if err != nil {
		return err
	}
	_, release, err := s.cache.Get(ctx, m.SHA256, func() (*inference.Detector, error) { return s.detector(m) })
	if err != nil {
		return s.closing(err)
	}
	defer release()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	e, replaced, err := s.registry.Put(name, m, file)
	if err != nil {
		return err
	}
	s.log.Info("model kept", slog.String("id", requestID(c)), slog.String("name", name), slog.String("sha256", e.SHA256), slog.Bool("replaced", replaced))
	if !replaced {
		c.Status(fiber.StatusCreated)
	}
	return c.JSON(e)
}

// readModel reads a model file that is a request's body, or the part modelFile
// of its form.
func (s *Server) readModel(c *fiber.Ctx) ([]byte, error) {
	var file []byte
	if kind, _, _ := mime.ParseMediaType(c.Get(fiber.HeaderContentType)); kind == fiber.MIMEMultipartForm {
		f, err := s.readForm(c, map[string]field{"modelFile": {limit: s.options.Models.MaxBytes}})
		if err != nil {
			return nil, err
		}
		defer f.Close()
		file = f.memory["modelFile"]
	} else {
		var err error
		if file, err = s.readBody(c, "The model", s.options.Models.MaxBytes); err != nil {
			return nil, err
		}
	}
	if len(file) == 0 {
		return nil, errNoModel
	}
	return file, nil
}

// readBody reads a body that is no form into memory.
func (s *Server) readBody(c *fiber.Ctx, what string, limit int64) ([]byte, error) {
	body := s.body(c)
	defer body.Close()
	if encoding := c.Get(fiber.HeaderContentEncoding); encoding != "" && encoding != "identity" {
		return nil, s.refuse(c, body, &problem{fiber.StatusUnsupportedMediaType, fmt.Sprintf("A body of Content-Encoding %.40q is not read: send it as it is", encoding)})
	}
	var data bytes.Buffer
	if length := int64(c.Request().Header.ContentLength()); length > 0 {
		data.Grow(int(min(length, limit, largestGuess)) + bytes.MinRead)
	}
	_, err := data.ReadFrom(charged{io.LimitReader(body, limit+1), shareOf(c)})
	if err != nil {
		if err = formError(err); errors.Is(err, errBadForm) {
			err = errCutOff
		}
	} else {
		err = within(what, int64(data.Len()), limit)
	}
	if err != nil {
		return nil, s.refuse(c, body, err)
	}
	return data.Bytes(), nil
}

var errCutOff = badRequest("The request's body is damaged or was cut off")

// deleteModel answers DELETE /models/{name}. Requests that judge by the model go
// on.
func (s *Server) deleteModel(c *fiber.Ctx) error {
	if s.registry == nil {
		return errNoRegistry
	}
	if err := s.registry.Delete(modelName(c)); err != nil {
		return err
	}
	s.log.Info("model deleted", slog.String("id", requestID(c)), slog.String("name", modelName(c)))
	return c.SendStatus(fiber.StatusNoContent)
}

// detectByName answers POST /models/{name}/detect.
func (s *Server) detectByName(c *fiber.Ctx) error {
	if s.draining.Load() {
		return errShuttingDown
	}
	name := modelName(c)
	if s.registry == nil {
		return s.refuseUnread(c, errNoRegistry)
	}
	if _, err := s.registry.Look(name); err != nil {
		return s.refuseUnread(c, err)
	}
	f, err := s.readForm(c, map[string]field{
		"imageFile":    {limit: s.options.Images.MaxBytes, many: s.options.RequestImages},
		"metadataFile": {limit: models.MaxMetadataBytes},
		"explain":      {limit: maxFieldBytes},
	})
	if err != nil {
		return err
	}
	defer f.Close()
	laps := s.metrics.laps(workDetect, arrival(c))
	laps.done(stageReceive)
	if !f.images() {
		return errNoImage
	}
	return s.judge(c, laps, f, func(ctx context.Context) (*inference.Detector, func(), error) { return s.named(ctx, name) })
}

// mostChanges bounds how often a request looks for a model again that is replaced
// each time.
const mostChanges = 10

// named gives the detector of a stored model. One that is deleted or replaced
// meanwhile goes on until it is released.
func (s *Server) named(ctx context.Context, name string) (*inference.Detector, func(), error) {
	for try := 0; ; try++ {
		e, err := s.registry.Get(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		d, release, err := s.cache.Get(ctx, e.SHA256, func() (*inference.Detector, error) {
			file, err := s.registry.Bytes(e)
			if err != nil {
				return nil, err
			}
			return s.read(file)
		})
		// Replaced between the look at the registry and at the disk.
		if errors.Is(err, registry.ErrChanged) && try < mostChanges {
			continue
		}
		return d, release, err
	}
}
