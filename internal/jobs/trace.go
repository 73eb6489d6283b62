package jobs

import (
	"context"
	"time"

	"github.com/deepmed/anomaly/internal/telemetry"
)

// phases are the spans of the phases of a running job.
type phases struct {
	ctx  context.Context // of the span of the job
	name string
	span telemetry.Span
}

// set ends the span of the phase before and begins that of another one.
func (p *phases) set(name string) {
	if p.ctx == nil || name == p.name {
		return
	}
	p.span.End(nil)
	p.name, p.span = name, telemetry.Span{}
	if name != "" {
		_, p.span = telemetry.Begin(p.ctx, name)
	}
}

// traceRun begins the span of an attempt, in the trace of the submission, and records how
// long the job has waited for its first one.
func traceRun(ctx context.Context, t *Task) (context.Context, telemetry.Span) {
	if !telemetry.On() {
		return ctx, telemetry.Span{}
	}
	ctx = telemetry.Resume(ctx, t.trace)
	if t.Job.Attempts == 1 {
		telemetry.Past(ctx, "job wait", t.Job.CreatedAt, time.Now())
	}
	ctx, span := telemetry.BeginConsumer(ctx, "job run")
	span.String("job.id", t.Job.ID)
	span.String("job.kind", t.Job.Kind)
	span.Int("job.attempt", t.Job.Attempts)
	t.mu.Lock()
	t.phases.ctx = ctx
	t.mu.Unlock()
	return ctx, span
}

// endTrace ends the span of an attempt and that of its last phase.
func endTrace(t *Task, span telemetry.Span, err error) {
	if !telemetry.On() {
		return
	}
	t.mu.Lock()
	t.phases.set("")
	t.phases.ctx = nil
	t.mu.Unlock()
	span.End(err)
}
