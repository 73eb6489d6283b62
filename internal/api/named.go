package api

import (
	"context"
	"errors"
	"log/slog"

	"github.com/deepmed/anomaly/internal/feedback"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/monitor"
	"github.com/deepmed/anomaly/internal/registry"
)

// namedModels is what the service keeps about stored models besides their files: their
// verdicts and their feedback.
type namedModels struct {
	registry registry.Registry
	feedback feedback.Store
	monitors *monitor.Set
}

// openFolder opens the folder of the stored models.
func (s *Server) openFolder() error {
	r, err := registry.OpenFolder(s.options.ModelsDir, s.options.Models, s.registryOptions(), s.log)
	if err != nil {
		return err
	}
	s.registry = r
	s.named = &namedModels{registry: r, feedback: feedback.NewFolders(s.feedbackLimits(), r.Path),
		monitors: monitor.NewSet(r, monitor.NewFolder(r.Path, s.log), s.log)}
	return nil
}

func (s *Server) registryOptions() registry.Options {
	return registry.Options{MaxModels: s.options.StoredModels, MaxVersions: s.options.ModelVersions, VersionBytes: s.options.VersionBytes}
}

func (s *Server) feedbackLimits() feedback.Limits {
	return feedback.Limits{Images: s.options.FeedbackImages, Bytes: s.options.FeedbackBytes}
}

// close writes all monitors. No verdict may be observed afterwards. It may be called more
// than once.
func (l *namedModels) close() {
	if l != nil {
		l.monitors.Close()
	}
}

// delete removes a model and all that is kept about it. It returns the registry's errors.
// What cannot be removed with the model is not found by a later model of the name.
func (l *namedModels) delete(ctx context.Context, name string, log *slog.Logger) error {
	e, err := l.registry.Look(ctx, name)
	if err != nil {
		return err
	}
	if err := l.registry.Delete(ctx, name); err != nil {
		return err
	}
	if err := errors.Join(l.monitors.Delete(ctx, name, e.Key), l.feedback.Delete(ctx, e.Key)); err != nil {
		log.Warn("cannot remove all that was kept about a deleted model", slog.String("name", name), slog.Any("error", err))
	}
	return nil
}

// checkDisk returns errNoSpace if n bytes more would take the space that the store of jobs
// needs: it stops when its disk is full, and stored models and uploads may be on the same
// disk.
func (s *Server) checkDisk(n int) error {
	if s.options.DataDir == "" {
		return nil
	}
	free, err := files.FreeSpace(s.options.DataDir)
	if err == nil && free < int64(n)+jobs.SpareDisk {
		err = errNoSpace
	}
	return err
}
