package telemetry

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Span is a part of a trace. The zero Span, which there is while traces are off, does
// nothing.
type Span struct{ span trace.Span }

// Begin begins a span under that of ctx, or a new trace. It must be ended.
func Begin(ctx context.Context, name string) (context.Context, Span) {
	return begin(ctx, name, trace.SpanKindInternal)
}

// BeginServer begins the span of a request, BeginProducer that of a message that is stored,
// and BeginConsumer that of the work of a message, all under the span of ctx.
func BeginServer(ctx context.Context, name string) (context.Context, Span) {
	return begin(ctx, name, trace.SpanKindServer)
}

// BeginProducer is described at BeginServer.
func BeginProducer(ctx context.Context, name string) (context.Context, Span) {
	return begin(ctx, name, trace.SpanKindProducer)
}

// BeginConsumer is described at BeginServer.
func BeginConsumer(ctx context.Context, name string) (context.Context, Span) {
	return begin(ctx, name, trace.SpanKindConsumer)
}

func begin(ctx context.Context, name string, kind trace.SpanKind) (context.Context, Span) {
	t := tracer.Load()
	if t == nil {
		return ctx, Span{}
	}
	ctx, span := (*t).Start(ctx, name, trace.WithSpanKind(kind))
	return ctx, Span{span}
}

// Past records a span under that of ctx that has ended already, such as a wait.
func Past(ctx context.Context, name string, began, ended time.Time) {
	t := tracer.Load()
	if t == nil {
		return
	}
	_, span := (*t).Start(ctx, name, trace.WithTimestamp(began))
	span.End(trace.WithTimestamp(ended))
}

// Name replaces the name of a span.
func (s Span) Name(name string) {
	if s.span != nil {
		s.span.SetName(name)
	}
}

// String sets an attribute.
func (s Span) String(key, value string) {
	if s.span != nil {
		s.span.SetAttributes(attribute.String(key, value))
	}
}

// Int sets an attribute.
func (s Span) Int(key string, value int) {
	if s.span != nil {
		s.span.SetAttributes(attribute.Int(key, value))
	}
}

// Fail marks a span as failed. It may be called before End.
func (s Span) Fail(reason string) {
	if s.span != nil {
		s.span.SetStatus(codes.Error, reason)
	}
}

// End ends a span. With an error it has failed. The text of the error, which may have names of
// files and models, is in the log and not in the trace.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	switch {
	case err == nil:
	case errors.Is(err, context.DeadlineExceeded):
		s.span.SetStatus(codes.Error, "timed out")
	case errors.Is(err, context.Canceled):
		s.span.SetStatus(codes.Error, "cancelled")
	default:
		s.span.SetStatus(codes.Error, "failed")
	}
	s.span.End()
}

// format is W3C's trace context: the headers traceparent and tracestate.
var format propagation.TraceContext

// maxState is the maximum length of a tracestate that is accepted, as the standard has it.
const maxState = 512

// Carrier is headers that a trace travels in. Keys are traceparent and tracestate.
type Carrier = propagation.TextMapCarrier

// Inject writes the trace of ctx into headers. It writes nothing while traces are off.
func Inject(ctx context.Context, c Carrier) {
	if On() {
		format.Inject(ctx, c)
	}
}

// Extract returns ctx with the trace that is in headers, if traces are on and it is valid.
func Extract(ctx context.Context, c Carrier) context.Context {
	if !On() || len(c.Get("tracestate")) > maxState {
		return ctx
	}
	return format.Extract(ctx, c)
}

// Map is headers as a map, such as those of a stored record.
type Map map[string]string

// Get returns a value.
func (m Map) Get(key string) string { return m[key] }

// Set sets a value.
func (m Map) Set(key, value string) { m[key] = value }

// Keys returns all keys.
func (m Map) Keys() []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

// Headers is the headers of a message of NATS, whose keys are case-sensitive.
type Headers map[string][]string

// Get returns the first value.
func (h Headers) Get(key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Set sets a value.
func (h Headers) Set(key, value string) { h[key] = []string{value} }

// Keys returns all keys.
func (h Headers) Keys() []string {
	keys := make([]string, 0, len(h))
	for k := range h {
		keys = append(keys, k)
	}
	return keys
}

// Stored returns the trace of ctx as text, to be kept in a record; empty if there is none.
func Stored(ctx context.Context) string {
	if !On() {
		return ""
	}
	m := Map{}
	format.Inject(ctx, m)
	return m["traceparent"]
}

// Resume returns ctx with a trace that Stored returned.
func Resume(ctx context.Context, stored string) context.Context {
	if stored == "" || !On() {
		return ctx
	}
	return format.Extract(ctx, Map{"traceparent": stored})
}

// With returns ctx with the span of from: for work that goes on after from has ended.
func With(ctx, from context.Context) context.Context {
	if !On() {
		return ctx
	}
	return trace.ContextWithSpan(ctx, trace.SpanFromContext(from))
}
