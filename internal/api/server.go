package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/imagefile"
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
	// DetectTime and TrainTime are how long a request may take from its headers
	// to its answer, its upload and its wait included; 0 for no bound. The first
	// is for everything that is done with models but training.
	DetectTime, TrainTime time.Duration
	// Models, Images and Dataset bound what an upload may hold.
	Models  models.Limits
	Images  imagefile.Limits
	Dataset dataset.Limits
	// CacheBytes is how much memory loaded models may take.
	CacheBytes int64
	// Batch says how images of one model run together.
	Batch inference.BatchOptions
	// RequestImages is how many bytes the images, or tensors, of one request
	// may have in all.
	RequestImages int64
	// UploadBytes is how much memory the uploads of all requests may take
	// together, beyond what loaded models keep: what was sent, and for tensors
	// what is made of them up to the answer.
	UploadBytes int64
	// ModelsDir is the folder of the models that have names; empty for none.
	// StoredModels is how many it may hold.
	ModelsDir    string
	StoredModels int
	// WaitingTrainings is how many trainings may wait behind the one that
	// runs; WaitingDetections how many images.
	WaitingTrainings  int
	WaitingDetections int
	// TrainingThreads is how many threads a training computes with, 0 for all of
	// the engine's, and TrainingNiceness how far they stand back behind those of
	// detections.
	TrainingThreads, TrainingNiceness int
	// TempDir is the folder in which uploads are spooled to a fresh one, which is
	// removed with the server; the system's when empty. What killed servers left
	// there is removed by the next one.
	TempDir string
	// Seed is that of every training.
	Seed int64
	// Token is what callers must show, but for the probes; nobody must when it
	// is empty.
	Token string
	// Origins are the origins of web pages that may read the answers.
	Origins []string
}

// DefaultOptions suit a machine of a few gigabytes.
func DefaultOptions() Options {
	o := Options{
		BodyBytes:         4 << 30,
		DrainBytes:        64 << 20,
		ReadPause:         30 * time.Second,
		DetectTime:        2 * time.Minute,
		TrainTime:         24 * time.Hour,
		Models:            models.DefaultLimits(),
		Images:            imagefile.DefaultLimits(),
		Dataset:           dataset.DefaultLimits(),
		CacheBytes:        256 << 20,
		Batch:             inference.BatchOptions{Delay: inference.MaxBatchDelay},
		RequestImages:     128 << 20,
		UploadBytes:       1 << 30,
		StoredModels:      1000,
		WaitingTrainings:  4,
		WaitingDetections: 256,
		TrainingNiceness:  10,
	}
	// What nobody can train here need not be served.
	o.Models.MaxSide = trainer.MaxImageSize
	return o
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
	metrics  *metrics
	options  Options
	temp     *tempDir
	app      *fiber.App
	cache    *inference.Cache
	schedule *inference.Scheduler
	registry *registry.Registry // nil without a folder
	loading  sync.WaitGroup     // of the registry's models
	training *gate
	running  *gate // detections
	memory   budget
	// base ends when what still runs must be cancelled.
	base     context.Context
	cancel   context.CancelCauseFunc
	draining atomic.Bool
}

// New makes a server on the engine. It must be closed by Shutdown.
func New(engine *ort.Engine, log *slog.Logger, o Options) (*Server, error) {
	dir, err := newTempDir(o.TempDir, log)
	if err != nil {
		return nil, fmt.Errorf("cannot keep uploads: %w", err)
	}
	o.TempDir = dir.path
	s := &Server{
		engine: engine, log: log, options: o, metrics: newMetrics(), temp: dir,
		training: newGate(1, o.WaitingTrainings),
		running:  newGate(detectionsPerThread*max(engine.Threads(), 1), o.WaitingDetections),
	}
	s.memory.fill(o.UploadBytes)
	s.base, s.cancel = context.WithCancelCause(context.Background())
	if err := s.openModels(); err != nil {
		s.cancel(err)
		return nil, errors.Join(err, dir.Close())
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
		ErrorHandler:                 s.unobserved,
	})
	server := s.app.Server()
	server.Handler = withAnyMethod(server.Handler)
	s.watch()
	if err := s.route(); err != nil {
		return nil, errors.Join(err, s.Shutdown(0))
	}
	return s, nil
}

// watch lets the metrics see what changes by itself.
func (s *Server) watch() {
	s.metrics.watchQueue(workDetect, s.running.inside, s.running.outside)
	s.metrics.watchQueue(workTrain, s.training.inside, s.training.outside)
	s.metrics.watchCache(s.cache.Stats)
}

// route sets up what every request passes and the endpoints. Whoever adds one
// describes it in openapi.yaml; a test holds the two against each other.
func (s *Server) route() error {
	s.app.Use(s.observe)
	s.app.Use(recovery.New(recovery.Config{EnableStackTrace: true, StackTraceHandler: func(c *fiber.Ctx, e any) {
		s.metrics.panics.Inc()
		s.log.Error("panic", slog.String("id", requestID(c)), slog.Any("value", e), slog.String("stack", string(debug.Stack())))
	}}))
	if len(s.options.Origins) > 0 {
		handler, err := crossOrigin(s.options.Origins)
		if err != nil {
			return err
		}
		s.app.Use(handler)
	}
	if s.options.Token != "" {
		s.app.Use(s.authorize(s.options.Token))
	}
	s.app.Get(pathHealth, s.health)
	s.app.Get(pathLive, s.live)
	s.app.Get(pathReady, s.ready)
	s.app.Get(pathMetrics, s.metrics.scrape)
	s.app.Get(pathOpenAPI, describeAPI)
	s.app.Post("/train", bounded(s.options.TrainTime), s.train)
	s.app.Post("/calibrate", bounded(s.options.TrainTime), s.calibrate)
	s.app.Post("/detect", bounded(s.options.DetectTime), s.detect)
	s.app.Post("/detect"+heatmapSuffix, bounded(s.options.DetectTime), s.detect)
	s.routeModels()
	s.routeInference()
	return nil
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
	return errors.Join(err, s.temp.Close())
}
