package api

import (
	"context"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/drift"
	"github.com/deepmed/anomaly/internal/feedback"
	"github.com/deepmed/anomaly/internal/monitor"
	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// driftWarning is the warning of verdicts, and the message of the state, while the alarm is
// on.
const driftWarning = "the images score higher than those of the model's calibration: camera, light or product may have changed, or defects are more frequent; " +
	"calibrate the model on new normal images, or reset the alarm"

// driftState is the state of a model's test for higher scores.
type driftState struct {
	Alarm         bool       `json:"alarm"`
	Since         *time.Time `json:"since"`
	Images        int64      `json:"images"`
	Log10Evidence float64    `json:"log10_evidence"`
	Level         float64    `json:"level"`
	Message       *string    `json:"message"`
	// Available is false for a model without the scores of its calibration.
	Available bool `json:"available"`
}

func newDriftState(d monitor.Drift) driftState {
	s := driftState{Level: drift.Level, Available: d.Available, Alarm: d.Alarm, Images: d.Images, Log10Evidence: d.Log10Evidence}
	if s.Alarm {
		at, message := d.Since, driftWarning
		s.Since, s.Message = &at, &message
	}
	return s
}

// judged adds a verdict of a stored model, or those of the frames of a file, to the model's
// monitor. It adds a warning to the verdict
// while the alarm is on. It reads and writes no file.
func (s *Server) judged(name string, v *inference.Verdict) {
	m := s.named.monitors.Of(name, v.ModelSHA256)
	if m == nil {
		return
	}
	alarm := false
	for _, f := range v.Frames { // the highest of several scores is not like one score
		alarm = m.Observe(v.ModelSHA256, f.ReconstructionError)
	}
	if v.Frames == nil {
		alarm = m.Observe(v.ModelSHA256, v.AnomalyScore)
	}
	if alarm {
		v.Warnings = append(v.Warnings[:len(v.Warnings):len(v.Warnings)], driftWarning)
	}
}

// modelScores is the answer of GET /models/{name}/scores.
type modelScores struct {
	Threshold      float64     `json:"threshold"`
	FalseAlarmRate *float64    `json:"false_alarm_rate"`
	Calibration    scoreList   `json:"calibration"`
	Recent         scoreList   `json:"recent"`
	Feedback       []scoreMark `json:"feedback"`
	Drift          driftState  `json:"drift"`
}

type scoreList struct {
	Count  int64     `json:"count"`
	Scores []float64 `json:"scores"`
}

type scoreMark struct {
	ID    string         `json:"id"`
	Label feedback.Label `json:"label"`
	Score *float64       `json:"anomaly_score"`
}

// describeScores answers GET /models/{name}/scores.
func (s *Server) describeScores(c *fiber.Ctx) error {
	if s.registry == nil {
		return errNoRegistry
	}
	name := modelName(c)
	ctx, done := s.workContext(c)
	defer done()
	e, records, err := s.currentFeedback(ctx, name)
	if err != nil {
		return s.shutdownError(err)
	}
	a := modelScores{Calibration: scoreList{Scores: []float64{}}, Recent: scoreList{Scores: []float64{}}, Feedback: []scoreMark{}, Drift: driftState{Level: drift.Level}}
	_, a.Threshold = e.Metadata.Measure()
	if d := e.Metadata.Decision; d != nil && d.FalseAlarmRate > 0 {
		a.FalseAlarmRate = &d.FalseAlarmRate
	}
	if r, ok := calibration.RanksOf(e.Metadata.Decision); ok {
		a.Calibration = scoreList{int64(r.Count()), r.Scores()}
	}
	for _, r := range records {
		a.Feedback = append(a.Feedback, scoreMark{r.ID, r.Label, r.Score})
	}
	if m := s.named.monitors.Of(name, e.SHA256); m != nil {
		summary, err := s.named.monitors.Summary(ctx, m)
		if err != nil {
			return s.shutdownError(err)
		}
		a.Recent = scoreList{summary.Count, summary.Recent}
		a.Drift = newDriftState(summary.Drift)
	}
	return c.JSON(a)
}

// resetDrift answers POST /models/{name}/drift/reset.
func (s *Server) resetDrift(c *fiber.Ctx) error {
	ctx, done := s.workContext(c)
	defer done()
	m, err := s.currentMonitor(ctx, c)
	if err != nil {
		return err
	}
	d, err := s.named.monitors.Reset(ctx, m)
	if err != nil {
		return err
	}
	s.log.Info("drift alarm reset", "id", requestID(c), "name", m.Name())
	return c.JSON(newDriftState(d))
}

// currentMonitor returns the monitor of the model in the request's path.
func (s *Server) currentMonitor(ctx context.Context, c *fiber.Ctx) (*monitor.Monitor, error) {
	switch {
	case s.draining.Load():
		return nil, errShuttingDown
	case s.registry == nil:
		return nil, errNoRegistry
	}
	name := modelName(c)
	for range maxReloads {
		e, err := s.registry.Get(ctx, name)
		if err != nil {
			return nil, err
		}
		if m := s.named.monitors.Of(name, e.SHA256); m != nil {
			return m, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return nil, errReplaced
}

// driftCollector has the metrics of the models' tests.
type driftCollector struct{ monitors *monitor.Set }

var (
	driftAlarm    = prometheus.NewDesc("anomaly_drift_alarm", "1 while the scores of a stored model's images are higher than its calibration's, else 0.", []string{"model"}, nil)
	driftEvidence = prometheus.NewDesc("anomaly_drift_log10_evidence", "Decimal logarithm of the evidence that a stored model's scores became higher. The alarm is at 2.", []string{"model"}, nil)
)

// Describe implements prometheus.Collector.
func (driftCollector) Describe(out chan<- *prometheus.Desc) {
	out <- driftAlarm
	out <- driftEvidence
}

// Collect implements prometheus.Collector.
func (d driftCollector) Collect(out chan<- prometheus.Metric) {
	for _, m := range d.monitors.All() {
		s := d.monitors.Own(m)
		if !s.Available {
			continue
		}
		alarm := 0.0
		if s.Alarm {
			alarm = 1
		}
		out <- prometheus.MustNewConstMetric(driftAlarm, prometheus.GaugeValue, alarm, m.Name())
		out <- prometheus.MustNewConstMetric(driftEvidence, prometheus.GaugeValue, s.Log10Evidence, m.Name())
	}
}
