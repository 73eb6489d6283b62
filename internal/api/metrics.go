package api

import (
	"bytes"
	"strconv"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

// The kinds of work whose stages are timed. Calibrations count as workTrain.
const (
	workDetect = "detect"
	workTrain  = "train"
)

// The stages of a request, in order.
const (
	stageReceive = "receive" // until the last byte of the upload
	stageQueue   = "queue"   // waiting for admission
	stageLoad    = "load"    // loading the model, from the cache or from its file
	stageDecode  = "decode"  // decoding and resizing the image
	stageInfer   = "infer"   // running the network
)

// stageBuckets are in seconds. The largest is the time after which the proxies in
// front of the service give up.
var stageBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600}

// noRoute is the route label of requests that no endpoint answers. A label per path
// would let clients create any number of series.
const noRoute = "none"

// metrics holds the service's Prometheus metrics, in a registry of their own. All
// methods may be called by several goroutines at once.
type metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec   // by method, route, status
	latency   *prometheus.HistogramVec // by route
	inFlight  prometheus.Gauge
	stages    *prometheus.HistogramVec // by work, stage
	batches   prometheus.Histogram
	panics    prometheus.Counter
	trainings *prometheus.CounterVec // by outcome
	jobs      *prometheus.CounterVec // ended, by state
	forwards  *prometheus.CounterVec // by result
	training  struct{ epoch, epochs, step, steps, loss, remaining prometheus.Gauge }
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anomaly_http_requests_total",
			Help: "Number of requests answered."}, []string{"method", "route", "status"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "anomaly_http_request_duration_seconds",
			Help: "Time from a request's headers to its answer.", Buckets: stageBuckets}, []string{"route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "anomaly_http_requests_in_flight",
			Help: "Number of requests not answered yet."}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "anomaly_stage_duration_seconds",
			Help:    "Time of each stage of a request: receive, queue, load (the model), decode (the image), infer.",
			Buckets: stageBuckets}, []string{"work", "stage"}),
		batches: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "anomaly_batch_images",
			Help: "Number of images in an inference batch.", Buckets: []float64{1, 2, 4, 8, 16, 32, 64}}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "anomaly_panics_total",
			Help: "Number of requests whose handler panicked."}),
		trainings: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anomaly_trainings_total",
			Help: "Number of trainings by outcome: complete, max_seconds or failed (includes cancelled)."}, []string{"ended"}),
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anomaly_jobs_ended_total",
			Help: "Number of jobs that have ended, by state: succeeded, failed or cancelled."}, []string{"state"}),
		forwards: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anomaly_forwarded_images_total",
			Help: "Number of images that another node of the cluster was asked to judge, by result: answered, declined or failed."}, []string{"result"}),
	}
	for gauge, o := range map[*prometheus.Gauge]prometheus.GaugeOpts{
		&m.training.epoch:     {Name: "anomaly_training_epoch", Help: "Current epoch of the running training, from 1; 0 if none runs."},
		&m.training.epochs:    {Name: "anomaly_training_epochs", Help: "Number of epochs of the running training."},
		&m.training.step:      {Name: "anomaly_training_step", Help: "Number of steps that the running training has taken."},
		&m.training.steps:     {Name: "anomaly_training_steps", Help: "Number of steps that the running training will take."},
		&m.training.loss:      {Name: "anomaly_training_loss", Help: "Mean loss of the current epoch of the running training so far."},
		&m.training.remaining: {Name: "anomaly_training_remaining_seconds", Help: "Estimated time left of the running training."},
	} {
		*gauge = prometheus.NewGauge(o)
		m.registry.MustRegister(*gauge)
	}
	m.registry.MustRegister(m.requests, m.latency, m.inFlight, m.stages, m.batches, m.panics, m.trainings, m.jobs, m.forwards,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// watchCache registers the metrics of the model cache. They are read from stats at each
// scrape.
func (m *metrics) watchCache(stats func() inference.CacheStats) {
	const lookups, help = "anomaly_model_cache_lookups_total", "Number of model lookups in the cache, by result."
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "anomaly_model_cache_models", Help: "Number of loaded models."},
			func() float64 { return float64(stats().Models) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "anomaly_model_cache_bytes", Help: "Estimated memory of the loaded models, in bytes."},
			func() float64 { return float64(stats().Bytes) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: lookups, Help: help, ConstLabels: prometheus.Labels{"result": "hit"}},
			func() float64 { return float64(stats().Hits) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: lookups, Help: help, ConstLabels: prometheus.Labels{"result": "miss"}},
			func() float64 { return float64(stats().Misses) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "anomaly_model_cache_evictions_total", Help: "Number of models evicted from the cache."},
			func() float64 { return float64(stats().Evictions) }),
	)
}

// watchQueue registers the metrics of a semaphore that admits one kind of work.
func (m *metrics) watchQueue(work string, s *semaphore) {
	labels := prometheus.Labels{"work": work}
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "anomaly_queue_running", Help: "Number of admitted requests in progress.", ConstLabels: labels},
			func() float64 { return float64(s.running()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "anomaly_queue_waiting", Help: "Number of requests waiting for admission.", ConstLabels: labels},
			func() float64 { return float64(s.waiting()) }),
	)
}

// watchJobs registers the metrics of the jobs. They are read from stats at each scrape.
func (m *metrics) watchJobs(stats func() (map[jobs.State]int, int64)) {
	for _, state := range jobs.States() {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "anomaly_jobs", Help: "Number of jobs kept, by state.",
			ConstLabels: prometheus.Labels{"state": string(state)}}, func() float64 {
			counts, _ := stats()
			return float64(counts[state])
		}))
	}
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "anomaly_jobs_bytes", Help: "Size of the uploads and models of all jobs, in bytes."},
		func() float64 {
			_, bytes := stats()
			return float64(bytes)
		}))
}

// request counts an answered request.
func (m *metrics) request(method, route string, status int, took time.Duration) {
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	m.latency.WithLabelValues(route).Observe(took.Seconds())
}

// batch counts an inference batch.
func (m *metrics) batch(images int) { m.batches.Observe(float64(images)) }

// stage records the time of a stage.
func (m *metrics) stage(work, stage string, took time.Duration) {
	m.stages.WithLabelValues(work, stage).Observe(took.Seconds())
}

// forwarded counts an image that another node was asked to judge.
func (m *metrics) forwarded(result string) { m.forwards.WithLabelValues(result).Inc() }

// stageTimer times the consecutive stages of a request. It must not be used by several
// goroutines at once; a copy continues independently.
type stageTimer struct {
	m    *metrics
	work string
	last time.Time
}

// timer returns a stageTimer whose first stage began at began.
func (m *metrics) timer(work string, began time.Time) *stageTimer {
	return &stageTimer{m, work, began}
}

// done records the end of a stage and the start of the next one.
func (t *stageTimer) done(stage string) {
	now := time.Now()
	t.m.stage(t.work, stage, now.Sub(t.last))
	t.last = now
}

// progress sets the metrics of the running training.
func (m *metrics) progress(p trainer.Progress) {
	t := &m.training
	t.epoch.Set(float64(p.Epoch))
	t.epochs.Set(float64(p.Epochs))
	t.step.Set(float64(p.Step))
	t.steps.Set(float64(p.Steps))
	t.loss.Set(p.Loss)
	t.remaining.Set(p.Remaining.Seconds())
}

// trained counts a training that has ended, and resets the metrics of the running one.
func (m *metrics) trained(outcome string) {
	m.trainings.WithLabelValues(outcome).Inc()
	m.progress(trainer.Progress{})
}

// scrape answers GET /metrics in Prometheus's text format.
func (m *metrics) scrape(c *fiber.Ctx) error {
	families, err := m.registry.Gather()
	if err != nil {
		return err
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	var text bytes.Buffer
	encoder := expfmt.NewEncoder(&text, format)
	for _, f := range families {
		if err := encoder.Encode(f); err != nil {
			return err
		}
	}
	c.Set(fiber.HeaderContentType, string(format))
	return c.Send(text.Bytes())
}
