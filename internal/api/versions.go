package api

import (
	"bytes"
	"context"
	"log/slog"
	"strings"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/gofiber/fiber/v2"
)

var errReplaced = &problem{fiber.StatusConflict, "The model was replaced again and again meanwhile, try again"}

func (s *Server) routeNamedModels() {
	timeout := withTimeout(s.options.DetectTime)
	const one = "/models/:name"
	s.app.Patch(one, timeout, s.patchModel)
	s.app.Get(one+"/file", timeout, s.modelFile)
	s.app.Post(one+"/calibrate", withTimeout(s.options.TrainTime), s.calibrateByName)
	s.app.Get(one+"/scores", timeout, s.describeScores)
	s.app.Post(one+"/drift/reset", timeout, s.resetDrift)
	s.app.Get(one+"/versions", timeout, s.listVersions)
	s.app.Post(one+"/versions/:sha256/restore", timeout, s.restoreVersion)
	s.app.Get(one+"/feedback", timeout, s.listFeedback)
	s.app.Post(one+"/feedback", timeout, s.addFeedback)
	s.app.Get(one+"/feedback/:id/image", timeout, s.feedbackImage)
	s.app.Delete(one+"/feedback/:id", timeout, s.deleteFeedback)
}

// listVersions answers GET /models/{name}/versions.
func (s *Server) listVersions(c *fiber.Ctx) error {
	if s.registry == nil {
		return errNoRegistry
	}
	ctx, done := s.workContext(c)
	defer done()
	list, err := s.registry.Versions(ctx, modelName(c))
	if err != nil {
		return err
	}
	if list == nil {
		list = []registry.Version{}
	}
	return c.JSON(fiber.Map{"versions": list})
}

// restoreVersion answers POST /models/{name}/versions/{sha256}/restore with the entry.
func (s *Server) restoreVersion(c *fiber.Ctx) error {
	if s.draining.Load() {
		return errShuttingDown
	}
	if s.registry == nil {
		return errNoRegistry
	}
	name := modelName(c)
	ctx, done := s.workContext(c)
	defer done()
	if err := s.versionSlots.acquire(ctx); err != nil {
		return err
	}
	defer s.versionSlots.release()
	v, file, err := s.registry.VersionBytes(ctx, name, strings.Clone(c.Params("sha256")))
	if err != nil {
		return err
	}
	e, _, err := s.storeFile(ctx, name, file, registry.RestoreOf(v))
	if err != nil {
		return s.shutdownError(err)
	}
	s.log.Info("model version restored", slog.String("id", requestID(c)), slog.String("name", name), slog.String("sha256", e.SHA256))
	return c.JSON(e)
}

// storeFile stores a model file as a new version under a name, after creating a session from
// it.
func (s *Server) storeFile(ctx context.Context, name string, file []byte, change registry.Change) (e registry.Entry, replaced bool, err error) {
	var m *models.Model
	err = s.scheduler.Work(ctx, func() error {
		m, err = models.Read(file, s.options.Models)
		return err
	})
	if err != nil {
		return e, false, err
	}
	_, release, err := s.cache.Get(ctx, m.SHA256, func() (*inference.Detector, error) { return s.newDetector(m) })
	if err != nil {
		return e, false, s.shutdownError(err)
	}
	defer release()
	if ctx.Err() != nil {
		return e, false, context.Cause(ctx)
	}
	if err := s.checkDisk(len(file)); err != nil {
		return e, false, err
	}
	if e, replaced, err = s.registry.Put(ctx, name, m, file, change); err != nil {
		return e, replaced, err
	}
	s.named.monitors.Of(name, e.SHA256)
	return e, replaced, nil
}

// storeModel stores a model as a new version, as the zip of a training.
func (s *Server) storeModel(ctx context.Context, name string, m *models.Model, change registry.Change) (registry.Entry, error) {
	var bundle bytes.Buffer
	err := s.scheduler.Work(ctx, func() error { return exporter.WriteBundle(&bundle, m) })
	if err != nil {
		return registry.Entry{}, err
	}
	e, _, err := s.storeFile(ctx, name, bundle.Bytes(), change)
	return e, err
}
