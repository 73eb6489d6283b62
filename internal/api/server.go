package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
	recovery "github.com/gofiber/fiber/v2/middleware/recover"
)

// ServiceName is what /health calls the service.
const ServiceName = "anomaly-detection-service"

// Options of a server. Zero values mean the defaults of DefaultOptions.
type Options struct {
	// BodyBytes is the most a request may send.
	BodyBytes int64
	// DrainBytes is how much of a refused request is read before its
	// connection is closed.
	DrainBytes int64
	// ReadPause is how long an upload may stop.
	ReadPause time.Duration
	// Models, Images and Dataset bound what an upload may hold.
	Models  models.Limits
	Images  inference.ImageLimits
	Dataset trainer.Limits
	// CacheBytes is how much memory loaded models may take.
	CacheBytes int64
	// Batch says how images of one model run together.
	Batch inference.BatchOptions
	// RequestImages is how many bytes the images, or tensors, of one request
	// may have in all.
	RequestImages int64
	// ModelsDir is the folder of the models that have names; empty for none.
	// StoredModels is how many it may hold.
	ModelsDir    string
	StoredModels int
	// WaitingTrainings is how many trainings may wait behind the one that
	// runs; WaitingDetections how many images.
	WaitingTrainings  int
	WaitingDetections int
	// TempDir is the folder that uploads are spooled to: a fresh one below the
	// system's when empty. It is removed with the server.
	TempDir string
	// Seed is that of every training.
	Seed int64
}

// DefaultOptions suit a machine of a few gigabytes.
func DefaultOptions() Options {
	return Options{
		BodyBytes:         4 << 30,
		DrainBytes:        64 << 20,
		ReadPause:         30 * time.Second,
		Models:            models.DefaultLimits(),
		Images:            inference.DefaultImageLimits(),
		Dataset:           trainer.DefaultLimits(),
		CacheBytes:        256 << 20,
		Batch:             inference.BatchOptions{Delay: inference.MaxBatchDelay},
		RequestImages:     128 << 20,
		StoredModels:      1000,
		WaitingTrainings:  4,
		WaitingDetections: 256,
	}
}

// maxFieldBytes bounds a text field and maxHeaderBytes a request's headers.
const (
	maxFieldBytes  = 1 << 10
	maxHeaderBytes = 16 << 10
	// prefetch is how much of a body is read before its handler starts.
	prefetch = 64 << 10
	// detectionsPerThread are let in at once for each thread: enough to be
	// decoded, to wait for each other's batch, and to be computed.
	detectionsPerThread = 8
	// slowestAnswer is how long a client may take to read its answer.
	slowestAnswer = 5 * time.Minute
)

// Server is the HTTP face of the service.
type Server struct {
	engine   *ort.Engine
	log      *slog.Logger
	options  Options
	app      *fiber.App
	cache    *inference.Cache
	schedule *inference.Scheduler
	registry *registry.Registry // nil without a folder
	loading  sync.WaitGroup     // of the registry's models
	training *gate
	running  *gate // detections
	// base ends when what still runs must be cancelled.
	base     context.Context
	cancel   context.CancelCauseFunc
	draining atomic.Bool
}

// New makes a server on the engine. It must be closed by Shutdown.
func New(engine *ort.Engine, log *slog.Logger, o Options) (*Server, error) {
	dir, err := os.MkdirTemp(o.TempDir, "anomaly-")
	if err != nil {
		return nil, err
	}
	o.TempDir = dir
	s := &Server{
		engine: engine, log: log, options: o,
		training: newGate(1, o.WaitingTrainings),
		running:  newGate(detectionsPerThread*max(engine.Threads(), 1), o.WaitingDetections),
	}
	s.base, s.cancel = context.WithCancelCause(context.Background())
	if err := s.openModels(); err != nil {
		s.cancel(err)
		return nil, errors.Join(err, os.Remove(dir))
	}
	s.app = fiber.New(fiber.Config{
		AppName:                      ServiceName,
		DisableStartupMessage:        true,
		StreamRequestBody:            true,
		DisablePreParseMultipartForm: true,
		BodyLimit:                    prefetch,
		ReadBufferSize:               maxHeaderBytes,
		ReadTimeout:                  o.ReadPause,
		WriteTimeout:                 slowestAnswer,
		IdleTimeout:                  2 * time.Minute,
		ErrorHandler:                 s.answer,
	})
	s.app.Use(s.observe)
	s.app.Use(recovery.New(recovery.Config{EnableStackTrace: true, StackTraceHandler: func(c *fiber.Ctx, e any) {
		s.log.Error("panic", slog.String("id", requestID(c)), slog.Any("value", e))
	}}))
	s.app.Get("/health", s.health)
	s.app.Post("/train", s.train)
	s.app.Post("/detect", s.detect)
	s.routeModels()
	s.routeInference()
	return s, nil
}

// Serve answers requests on the listener until Shutdown.
func (s *Server) Serve(l net.Listener) error { return s.app.Listener(l) }

// Shutdown stops taking work, lets what runs end within the grace period,
// cancels what does not, and removes everything the server kept.
func (s *Server) Shutdown(grace time.Duration) error {
	s.draining.Store(true)
	timer := time.AfterFunc(grace, func() { s.cancel(errShuttingDown) })
	defer timer.Stop()
	const afterCancel = 5 * time.Second
	err := s.app.ShutdownWithTimeout(grace + afterCancel)
	s.cancel(errShuttingDown)
	s.loading.Wait()
	s.cache.Close()
	if s.registry != nil {
		err = errors.Join(err, s.registry.Close())
	}
	return errors.Join(err, os.RemoveAll(filepath.Clean(s.options.TempDir)))
}

// observe gives every request an id, and logs it when it is done.
func (s *Server) observe(c *fiber.Ctx) error {
	id := c.Get(fiber.HeaderXRequestID)
	if !plainID.MatchString(id) {
		id = newID()
	}
	c.Locals(idKey, id)
	c.Set(fiber.HeaderXRequestID, id)
	c.Set(fiber.HeaderXContentTypeOptions, "nosniff")
	started := time.Now()
	if err := c.Next(); err != nil {
		if err := s.answer(c, err); err != nil {
			return err
		}
	}
	s.log.Info("request", slog.String("id", id), slog.String("method", c.Method()), slog.String("path", c.Path()),
		slog.Int("status", c.Response().StatusCode()), slog.Duration("took", time.Since(started)))
	return nil
}

type localsKey int

const idKey localsKey = 0

// plainID is what an id of a client's may look like; any other is replaced.
var plainID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func requestID(c *fiber.Ctx) string {
	id, _ := c.Locals(idKey).(string)
	return id
}
