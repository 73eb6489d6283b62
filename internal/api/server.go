package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
	recovery "github.com/gofiber/fiber/v2/middleware/recover"
)

// ServiceName is the name of the service in the answer of /health.
const ServiceName = "anomaly-detection-service"

// Options configure a Server. DefaultOptions returns usable values for all of them.
type Options struct {
	// BodyBytes is the maximum size of a request's body.
	BodyBytes int64
	// DrainBytes is how much of a rejected request's body is read before its connection
	// is closed.
	DrainBytes int64
	// ReadPause is the maximum time between two reads of an upload.
	ReadPause time.Duration
	// DetectTime and TrainTime bound the time of a request from its headers to its
	// answer, including its upload and its time in the queue; 0 means no bound.
	// TrainTime applies to trainings and calibrations, DetectTime to all other requests
	// that use models.
	DetectTime, TrainTime time.Duration
	// DefaultMaxSeconds is the max_seconds of a training whose form has none: for clients
	// that give up after a fixed time and cannot say so. 0 means no limit, at most
	// 2592000 (30 days) are allowed.
	DefaultMaxSeconds float64
	// Models, Images and Dataset limit the content of uploads.
	Models  models.Limits
	Images  imagefile.Limits
	Dataset dataset.Limits
	// CacheBytes is the memory budget of the loaded models.
	CacheBytes int64
	// Batch configures the dynamic batching of images.
	Batch inference.BatchOptions
	// RequestImages is the maximum size of all images, or tensors, of one request
	// together, in bytes.
	RequestImages int64
	// UploadBytes is the memory budget of the uploads of all requests together: their
	// bytes and, for tensors, what is computed from them up to the answer. Loaded
	// models do not count.
	UploadBytes int64
	// StreamBytes is the maximum size of the images that wait in the stream of images, and that
	// of its verdicts.
	StreamBytes int64
	// ModelCacheDir is the folder with copies of the files of a cluster's models, of at most
	// ModelCacheBytes together; empty for one that Shutdown removes.
	ModelCacheDir   string
	ModelCacheBytes int64
	// ModelsDir is the folder of the stored models; empty for none, and without effect in a
	// cluster. StoredModels is the maximum number of models.
	ModelsDir    string
	StoredModels int
	// ModelVersions is the maximum number of versions of a stored model, with the current
	// one, and VersionBytes their maximum size together.
	ModelVersions int
	VersionBytes  int64
	// FeedbackImages is the maximum number of images of a model's feedback, and
	// FeedbackBytes their maximum size together.
	FeedbackImages int
	FeedbackBytes  int64
	// DataDir is the folder of the jobs; empty for a temporary one that Shutdown
	// removes. StoredJobs is the maximum number of jobs in it, JobAge how long they are
	// kept after their end (0 means no limit), and JobBytes the maximum size of all
	// their uploads and models.
	DataDir    string
	StoredJobs int
	JobAge     time.Duration
	JobBytes   int64
	// Broker is the connection to a cluster, which must outlive the server; nil for a service
	// alone. In a cluster DataDir and ModelsDir are not used: jobs, the stored models, their
	// feedback and their verdicts are those of the cluster. The trainings of /train are done by
	// workers.
	Broker *broker.Broker
	// Work lists the kinds of the jobs that this process of a cluster does, Parallel of each
	// kind at once (0 means 1), and WorkStream for the stream of images; a service alone does all
	// jobs. ProbesOnly reports whether it serves nothing but the endpoints for operators.
	Work       []string
	Parallel   int
	ProbesOnly bool
	// CheckpointInterval is the time between two checkpoints of the training of a job, from
	// which another process continues it; 0 means none. A service alone without DataDir makes
	// none.
	CheckpointInterval time.Duration
	// CallbackHosts are the only hosts, names or addresses without a port, that jobs may
	// have callbacks to. If it is empty, no job may have one.
	CallbackHosts []string
	// CallbackSecret is the key by which callbacks are signed; empty for none.
	CallbackSecret []byte
	// WaitingTrainings and WaitingDetections are the lengths of the wait queues.
	WaitingTrainings  int
	WaitingDetections int
	// TrainingThreads is the number of threads of a training; 0 means all of the
	// engine's. TrainingNiceness is the scheduling priority of those threads, as for
	// nice(1): higher values leave more of the processor to detections.
	TrainingThreads, TrainingNiceness int
	// TempDir is the folder in which the server creates a folder for its uploads; empty
	// means the system's folder for temporary files. Shutdown removes the server's
	// folder, and New those that killed servers left.
	TempDir string
	// Seed is the seed of every training.
	Seed int64
	// Token is the bearer token that requests must have, except for probes; empty for
	// none.
	Token string
	// Tokens are more tokens that requests may have instead. Each belongs to a caller; jobs
	// of several callers are run in turns. Nothing else depends on the token.
	Tokens []string
	// Origins are the origins of the web pages that may read answers.
	Origins []string
	// Page reports whether the web page is served at /.
	Page bool
}

// DefaultOptions returns options for a machine with a few gigabytes of memory.
func DefaultOptions() Options {
	o := Options{
		BodyBytes:          4 << 30,
		DrainBytes:         64 << 20,
		ReadPause:          30 * time.Second,
		DetectTime:         2 * time.Minute,
		TrainTime:          24 * time.Hour,
		Models:             models.DefaultLimits(),
		Images:             imagefile.DefaultLimits(),
		Dataset:            dataset.DefaultLimits(),
		CacheBytes:         256 << 20,
		ModelCacheBytes:    4 << 30,
		StreamBytes:        1 << 30,
		Batch:              inference.BatchOptions{Delay: inference.MaxBatchDelay},
		RequestImages:      128 << 20,
		UploadBytes:        1 << 30,
		StoredModels:       1000,
		ModelVersions:      10,
		VersionBytes:       1 << 30,
		FeedbackImages:     500,
		FeedbackBytes:      1 << 30,
		StoredJobs:         1000,
		JobAge:             30 * 24 * time.Hour,
		JobBytes:           20 << 30,
		CheckpointInterval: trainer.DefaultCheckpointInterval,
		WaitingTrainings:   4,
		WaitingDetections:  256,
		TrainingNiceness:   10,
		Page:               true,
	}
	// No larger model can be trained.
	o.Models.MaxSide = trainer.MaxImageSize
	return o
}

const (
	// maxFieldBytes is the maximum size of a text field, in bytes.
	maxFieldBytes = 1 << 10
	// maxHeaderBytes is the maximum size of a request's headers, in bytes.
	maxHeaderBytes = 16 << 10
	// prefetch is how much of a body is read before its handler starts, in bytes.
	prefetch = 64 << 10
	// detectionsPerThread is the number of detections admitted at once for each thread.
	// While one is computed, others are decoded or wait for their batch.
	detectionsPerThread = 8
	// writeTimeout is the maximum time for a client to read its answer.
	writeTimeout = 5 * time.Minute
	// idleTimeout is the maximum time between two requests on a connection.
	idleTimeout = 2 * time.Minute
)

// Server serves the HTTP API.
type Server struct {
	engine    *ort.Engine
	log       *slog.Logger
	metrics   *metrics
	options   Options
	temp      *tempDir
	app       *fiber.App
	cache     *inference.Cache
	scheduler *inference.Scheduler
	registry  registry.Registry // nil without a folder or a cluster
	named     *namedModels      // nil without a registry
	node      *node             // nil without a cluster
	loading   sync.WaitGroup    // reads the registry's models
	jobs      *jobService
	// spoolsBesideJobs reports whether uploads are on the disk of the jobs, which they
	// must not fill.
	spoolsBesideJobs bool

	trainingSlots  *semaphore // trainings and calibrations
	detectionSlots *semaphore
	versionSlots   *semaphore // changes and downloads of stored models, which are written in memory
	memory         memoryBudget
	eventStreams   atomic.Int64  // open ones
	defaultTime    time.Duration // DefaultMaxSeconds

	// base is the parent of all requests' contexts; cancel cancels them.
	base   context.Context
	cancel context.CancelCauseFunc
	// accepting ends when the shutdown begins; drain ends it.
	accepting context.Context
	drain     context.CancelCauseFunc
	draining  atomic.Bool
}

// ErrDefaultMaxSeconds is returned, wrapped, by New for an invalid DefaultMaxSeconds.
var ErrDefaultMaxSeconds = errors.New("unusable default for max_seconds")

// New returns a server that computes on engine. The caller must call Shutdown.
func New(engine *ort.Engine, log *slog.Logger, o Options) (*Server, error) {
	defaultTime := duration(o.DefaultMaxSeconds)
	if defaultTime == 0 && o.DefaultMaxSeconds != 0 {
		return nil, fmt.Errorf("%w: %v, expected a number above 0 and at most %.0f, or 0 for no limit", ErrDefaultMaxSeconds, o.DefaultMaxSeconds, maxTrainingTime.Seconds())
	}
	var err error
	if o.CallbackHosts, err = checkCallbacks(o.CallbackHosts, o.CallbackSecret); err != nil {
		return nil, err
	}
	dir, err := newTempDir(o.TempDir, log)
	if err != nil {
		return nil, fmt.Errorf("cannot store uploads: %w", err)
	}
	tempParent := o.TempDir
	o.TempDir = dir.path
	if o.ModelCacheDir == "" {
		o.ModelCacheDir = filepath.Join(dir.path, "models")
	}
	s := &Server{
		engine: engine, log: log, options: o, metrics: newMetrics(), temp: dir, defaultTime: defaultTime,
		trainingSlots:  newSemaphore(max(1, o.Parallel), o.WaitingTrainings),
		detectionSlots: newSemaphore(detectionsPerThread*max(engine.Threads(), 1), o.WaitingDetections),
		versionSlots:   newSemaphore(1, o.WaitingDetections),
	}
	s.memory.reset(o.UploadBytes)
	s.base, s.cancel = context.WithCancelCause(context.Background())
	s.accepting, s.drain = context.WithCancelCause(s.base)
	if err := s.openModels(); err != nil {
		s.cancel(err)
		if s.node != nil {
			s.node.close()
			s.named.close()
			err = errors.Join(err, s.node.closeModels())
		}
		return nil, errors.Join(err, dir.Close())
	}
	s.jobs = &jobService{server: s, tempParent: tempParent, attached: jobs.NewAttached()}
	if o.DataDir != "" || o.Broker != nil {
		_, err := s.jobs.open()
		if err == nil && o.Broker == nil {
			s.spoolsBesideJobs, err = files.SameDisk(o.TempDir, o.DataDir)
		}
		if err != nil {
			return nil, errors.Join(err, s.Shutdown(0))
		}
	}
	s.app = fiber.New(fiber.Config{
		AppName:                      ServiceName,
		DisableStartupMessage:        true,
		StreamRequestBody:            true,
		DisablePreParseMultipartForm: true,
		BodyLimit:                    prefetch,
		ReadBufferSize:               maxHeaderBytes,
		ReadTimeout:                  o.ReadPause,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		ErrorHandler:                 s.handleFiberError,
	})
	server := s.app.Server()
	server.Handler = acceptAnyMethod(server.Handler)
	s.metrics.watchQueue(workDetect, s.detectionSlots)
	s.metrics.watchQueue(workTrain, s.trainingSlots)
	s.metrics.watchCache(s.cache.Stats)
	s.metrics.watchJobs(s.jobs.stats)
	s.metrics.registry.MustRegister(loadCollector{s.jobs.loads})
	if s.options.Broker != nil {
		s.metrics.registry.MustRegister(natsCollector{s.options.Broker})
	}
	if s.named != nil {
		s.metrics.registry.MustRegister(driftCollector{s.named.monitors})
	}
	if err := s.route(); err != nil {
		return nil, errors.Join(err, s.Shutdown(0))
	}
	return s, nil
}

// route registers the middlewares and the endpoints. Each endpoint must be described in
// openapi.yaml; a test compares the two.
func (s *Server) route() error {
	s.app.Use(s.observe)
	s.app.Use(recovery.New(recovery.Config{EnableStackTrace: true, StackTraceHandler: func(c *fiber.Ctx, e any) {
		s.metrics.panics.Inc()
		s.log.Error("handler panicked", slog.String("id", requestID(c)), slog.Any("value", e), slog.String("stack", string(debug.Stack())))
	}}))
	if len(s.options.Origins) > 0 {
		handler, err := corsHandler(s.options.Origins)
		if err != nil {
			return err
		}
		s.app.Use(handler)
	}
	tokens := s.options.Tokens
	if s.options.Token != "" {
		tokens = append(slices.Clone(tokens), s.options.Token)
	}
	if len(tokens) > 0 {
		s.app.Use(s.authorize(tokens))
	}
	s.app.Get(pathHealth, s.health)
	s.app.Get(pathLive, s.live)
	s.app.Get(pathReady, s.ready)
	s.app.Get(pathMetrics, s.metrics.scrape)
	if s.options.ProbesOnly {
		return nil
	}
	s.app.Get(pathOpenAPI, serveOpenAPI)
	s.app.Post("/train", withTimeout(s.options.TrainTime), s.train)
	s.app.Post("/calibrate", withTimeout(s.options.TrainTime), s.calibrate)
	s.app.Post("/detect", withTimeout(s.options.DetectTime), s.detect)
	s.app.Post("/detect"+heatmapSuffix, withTimeout(s.options.DetectTime), s.detect)
	s.routeModels()
	s.routeNamedModels()
	s.app.Get("/cluster", withTimeout(s.options.DetectTime), s.describeCluster)
	s.routeInference()
	s.routeJobs()
	if s.options.Page {
		return s.routePage()
	}
	return nil
}

// Serve answers requests on the listener until Shutdown is called.
func (s *Server) Serve(l net.Listener) error { return s.app.Listener(l) }

// Shutdown rejects new work, waits up to grace for requests in progress, cancels the
// rest, and releases the server's resources, including its folder of uploads. A job
// that still runs then is given back to the queue.
func (s *Server) Shutdown(grace time.Duration) error {
	s.draining.Store(true)
	s.drain(errShuttingDown)
	timer := time.AfterFunc(grace, func() { s.cancel(errShuttingDown) })
	defer timer.Stop()
	const afterCancel = 5 * time.Second
	var err error
	if s.app != nil {
		err = s.app.ShutdownWithTimeout(grace + afterCancel)
	}
	s.cancel(errShuttingDown)
	s.loading.Wait()
	err = errors.Join(err, s.jobs.close())
	s.node.close()
	s.cache.Close()
	s.named.close()
	if s.registry != nil {
		err = errors.Join(err, s.registry.Close())
	}
	err = errors.Join(err, s.node.closeModels())
	return errors.Join(err, s.temp.Close())
}
