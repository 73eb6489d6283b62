package api

import (
	"bytes"
	"strconv"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

// The kinds of work that are measured in stages.
const (
	workDetect = "detect"
	workTrain  = "train"
)

// The stages of a request, in their order.
const (
	stageReceive = "receive" // the upload, until its last byte
	stageQueue   = "queue"   // the wait for a place to run
	stageLoad    = "load"    // the model, from the cache or from its bytes
	stageDecode  = "decode"  // the image, decoded and resized
	stageInfer   = "infer"   // the network
)

// stageBuckets span half a millisecond to the ten minutes at which proxies give
// up on a training.
var stageBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600}

// noRoute labels requests that no endpoint answers, so that a stranger's paths
// make no series.
const noRoute = "none"

// metrics is what the service tells Prometheus, in a registry of its own. All
// methods may be called by several goroutines at once.
type metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec   // by method, route, status
	took      *prometheus.HistogramVec // by route
	underway  prometheus.Gauge
	stages    *prometheus.HistogramVec // by work, stage
	batches   prometheus.Histogram
	panics    prometheus.Counter
	trainings *prometheus.CounterVec // by how they ended
	training  struct{ epoch, epochs, step, steps, loss, remaining prometheus.Gauge }
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anomaly_http_requests_total",
			Help: "Requests that were answered."}, []string{"method", "route", "status"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "anomaly_http_request_duration_seconds",
			Help: "From a request's headers to its answer.", Buckets: stageBuckets}, []string{"route"}),
		underway: prometheus.NewGauge(prometheus.GaugeOpts{Name: "anomaly_http_requests_in_flight",
			Help: "Requests that are not answered yet."}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "anomaly_stage_duration_seconds",
			Help:    "The stages of a request: receive, queue, load (the model), decode (the image), infer.",
			Buckets: stageBuckets}, []string{"work", "stage"}),
		batches: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "anomaly_batch_images",
			Help: "Images that were inferred together.", Buckets: []float64{1, 2, 4, 8, 16, 32, 64}}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "anomaly_panics_total",
			Help: "Requests that ended in a panic, which was caught."}),
		trainings: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anomaly_trainings_total",
			Help: "Trainings that ran, by how they ended: complete, max_seconds or failed (cancelled ones included)."}, []string{"ended"}),
	}
	for gauge, o := range map[*prometheus.Gauge]prometheus.GaugeOpts{
		&m.training.epoch:     {Name: "anomaly_training_epoch", Help: "The epoch of the training that runs, from 1; 0 when none does."},
		&m.training.epochs:    {Name: "anomaly_training_epochs", Help: "The epochs of the training that runs."},
		&m.training.step:      {Name: "anomaly_training_step", Help: "The steps that the running training has taken."},
		&m.training.steps:     {Name: "anomaly_training_steps", Help: "The steps that the running training will take."},
		&m.training.loss:      {Name: "anomaly_training_loss", Help: "The mean loss of the running training's epoch so far."},
		&m.training.remaining: {Name: "anomaly_training_remaining_seconds", Help: "What is left of the running training at its pace."},
	} {
		*gauge = prometheus.NewGauge(o)
		m.registry.MustRegister(*gauge)
	}
	m.registry.MustRegister(m.requests, m.took, m.underway, m.stages, m.batches, m.panics, m.trainings,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// watchCache reports a cache, which is asked at each scrape.
func (m *metrics) watchCache(stats func() inference.CacheStats) {
	const lookups, help = "anomaly_model_cache_lookups_total", "Models that were asked for, by whether they were loaded already."
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "anomaly_model_cache_models", Help: "Models that are loaded."},
			func() float64 { return float64(stats().Models) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "anomaly_model_cache_bytes", Help: "What the loaded models are counted with, in bytes."},
			func() float64 { return float64(stats().Bytes) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: lookups, Help: help, ConstLabels: prometheus.Labels{"result": "hit"}},
			func() float64 { return float64(stats().Hits) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: lookups, Help: help, ConstLabels: prometheus.Labels{"result": "miss"}},
			func() float64 { return float64(stats().Misses) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "anomaly_model_cache_evictions_total", Help: "Models that left the cache to make room."},
			func() float64 { return float64(stats().Evictions) }),
	)
}

// watchQueue reports how many of a kind of work run, and wait to.
func (m *metrics) watchQueue(work string, running, waiting func() int) {
	labels := prometheus.Labels{"work": work}
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "anomaly_queue_running", Help: "Requests that are worked on.", ConstLabels: labels},
			func() float64 { return float64(running()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "anomaly_queue_waiting", Help: "Requests that wait for a place to run.", ConstLabels: labels},
			func() float64 { return float64(waiting()) }),
	)
}

// request counts an answered request.
func (m *metrics) request(method, route string, status int, took time.Duration) {
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	m.took.WithLabelValues(route).Observe(took.Seconds())
}

// batch counts images that were inferred together.
func (m *metrics) batch(images int) { m.batches.Observe(float64(images)) }

// stage counts a stage of a kind of work.
func (m *metrics) stage(work, stage string, took time.Duration) {
	m.stages.WithLabelValues(work, stage).Observe(took.Seconds())
}

// laps measures the stages of a request that follow one another. It is for one
// goroutine.
type laps struct {
	m    *metrics
	work string
	last time.Time
}

func (m *metrics) laps(work string, began time.Time) *laps { return &laps{m, work, began} }

// done ends a stage, which began where the one before it ended.
func (l *laps) done(stage string) {
	now := time.Now()
	l.m.stage(l.work, stage, now.Sub(l.last))
	l.last = now
}

// progress shows how far the running training is.
func (m *metrics) progress(p trainer.Progress) {
	t := &m.training
	t.epoch.Set(float64(p.Epoch))
	t.epochs.Set(float64(p.Epochs))
	t.step.Set(float64(p.Step))
	t.steps.Set(float64(p.Steps))
	t.loss.Set(p.Loss)
	t.remaining.Set(p.Remaining.Seconds())
}

// trained counts a training and shows that none runs.
func (m *metrics) trained(ended string) {
	m.trainings.WithLabelValues(ended).Inc()
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
