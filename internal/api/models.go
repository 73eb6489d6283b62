package api

import (
	"context"
	"errors"
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

// openModels creates the scheduler, the cache and the registry, and starts to read the
// models in the registry's folder or cluster.
func (s *Server) openModels() error {
	var err error
	batch := s.options.Batch
	batch.Observe = func(images int, took time.Duration) {
		s.metrics.batch(images)
		if observe := s.options.Batch.Observe; observe != nil {
			observe(images, took)
		}
	}
	if s.scheduler, err = inference.NewScheduler(s.engine, batch); err != nil {
		return err
	}
	s.cache = inference.NewCache(s.options.CacheBytes)
	switch {
	case s.clustered():
		if err := s.openCluster(); err != nil {
			return err
		}
		return s.node.start()
	case s.options.ModelsDir != "":
		if err := s.openFolder(); err != nil {
			return err
		}
		s.loading.Go(func() {
			s.registry.Load(s.base, s.preload)
			s.named.monitors.OpenAll()
		})
	}
	return nil
}

// preload puts a model into the cache unless the cache is full.
func (s *Server) preload(m *models.Model) error {
	if s.cache.Room() <= 0 {
		return nil
	}
	_, release, err := s.cache.Get(s.base, m.SHA256, func() (*inference.Detector, error) { return s.newDetector(m) })
	if err == nil {
		release()
	}
	return err
}

// modelName returns a copy of the model's name in the path. Fiber reuses the memory of
// its string for the next request.
func modelName(c *fiber.Ctx) string { return strings.Clone(c.Params("name")) }

func (s *Server) routeModels() {
	timeout := withTimeout(s.options.DetectTime)
	s.app.Get("/models", timeout, s.listModels)
	s.app.Get("/models/:name", timeout, s.describeModel)
	s.app.Put("/models/:name", timeout, s.putModel)
	s.app.Delete("/models/:name", timeout, s.deleteModel)
	s.app.Post("/models/:name/detect", timeout, s.detectByName)
	s.app.Post("/models/:name/detect"+heatmapSuffix, timeout, s.detectByName)
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
	ctx, done := s.workContext(c)
	defer done()
	e, err := s.registry.Look(ctx, modelName(c))
	if err != nil {
		return err
	}
	return c.JSON(e)
}

// putModel answers PUT /models/{name}. It stores the model only after creating a session
// from it.
func (s *Server) putModel(c *fiber.Ctx) error {
	if s.draining.Load() {
		return errShuttingDown
	}
	name := modelName(c)
	if s.registry == nil {
		return s.rejectUnread(c, errNoRegistry)
	}
	if err := registry.CheckName(name); err != nil {
		return s.rejectUnread(c, err)
	}
	file, err := s.readModel(c)
	if err != nil {
		return err
	}
	ctx, done := s.workContext(c)
	defer done()
	if err := s.detectionSlots.acquire(ctx); err != nil {
		return err
	}
	defer s.detectionSlots.release()
	e, replaced, err := s.storeFile(ctx, name, file, registry.Change{Reason: "uploaded"})
	if err != nil {
		return err
	}
	s.log.Info("model stored", slog.String("id", requestID(c)), slog.String("name", name), slog.String("sha256", e.SHA256), slog.Bool("replaced", replaced))
	if !replaced {
		c.Status(fiber.StatusCreated)
	}
	return c.JSON(e)
}

// readModel reads a model file: the request's body, or the part modelFile of its form.
func (s *Server) readModel(c *fiber.Ctx) ([]byte, error) {
	var file []byte
	fields := map[string]field{"modelFile": {maxBytes: s.options.Models.MaxBytes}}
	if kind, _, _ := mime.ParseMediaType(c.Get(fiber.HeaderContentType)); kind == fiber.MIMEMultipartForm {
		f, err := s.readForm(c, fields)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		file = f.memory["modelFile"]
	} else {
		err := rejectQuery(c, fields)
		if err != nil {
			return nil, s.rejectUnread(c, err)
		}
		if file, err = s.readBody(c, "The model", s.options.Models.MaxBytes); err != nil {
			return nil, err
		}
	}
	if len(file) == 0 {
		return nil, errNoModel
	}
	return file, nil
}

// deleteModel answers DELETE /models/{name}. Requests in progress still use the model.
func (s *Server) deleteModel(c *fiber.Ctx) error {
	if s.registry == nil {
		return errNoRegistry
	}
	ctx, done := s.workContext(c)
	defer done()
	if err := s.named.delete(ctx, modelName(c), s.log); err != nil {
		return err
	}
	s.log.Info("model deleted", slog.String("id", requestID(c)), slog.String("name", modelName(c)))
	return c.SendStatus(fiber.StatusNoContent)
}

// acceptForModel returns the name of the stored model in the path of a request with a body,
// or the response that refuses the request before its body is read.
func (s *Server) acceptForModel(c *fiber.Ctx) (name string, err error) {
	if s.draining.Load() {
		return "", errShuttingDown
	}
	name = modelName(c)
	if s.registry == nil {
		return "", s.rejectUnread(c, errNoRegistry)
	}
	if _, err := s.registry.Look(s.base, name); err != nil {
		return "", s.rejectUnread(c, err)
	}
	return name, nil
}

// detectByName answers POST /models/{name}/detect.
func (s *Server) detectByName(c *fiber.Ctx) error {
	name, err := s.acceptForModel(c)
	if err != nil {
		return err
	}
	f, timer, err := s.receiveForm(c, workDetect, map[string]field{
		"imageFile":    {maxBytes: s.options.Images.MaxBytes, maxTotal: s.options.RequestImages},
		"metadataFile": {maxBytes: models.MaxMetadataBytes},
		"explain":      {maxBytes: maxFieldBytes},
	})
	if err != nil {
		return err
	}
	defer f.Close()
	if !f.hasImage() {
		return errNoImage
	}
	return s.detectImages(c, timer, f, func(ctx context.Context) (judge, string, error) { return s.namedJudge(ctx, name) })
}

// maxReloads bounds how often a request looks up a model that is replaced each time.
const maxReloads = 10

// namedDetector returns the detector of a stored model. It remains usable until it is
// released, even if the model is deleted or replaced.
func (s *Server) namedDetector(ctx context.Context, name string) (*inference.Detector, func(), error) {
	for try := 0; ; try++ {
		e, err := s.registry.Get(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		d, release, err := s.cache.Get(ctx, e.SHA256, func() (*inference.Detector, error) {
			file, err := s.registry.Bytes(s.base, e)
			if err != nil {
				return nil, err
			}
			return s.loadDetector(file)
		})
		// The model was replaced between Get and Bytes.
		if errors.Is(err, registry.ErrChanged) && try < maxReloads {
			continue
		}
		return d, release, err
	}
}
