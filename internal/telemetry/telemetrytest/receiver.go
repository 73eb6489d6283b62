// Package telemetrytest receives traces in tests, by OTLP over HTTP.
package telemetrytest

import (
	"context"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/telemetry"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is a span that was received. Ids are in hexadecimal.
type Span struct {
	Trace, ID, Parent, Name, Service string
	Began, Ended                     time.Time
	Attributes                       map[string]string // those with text
	Failed                           bool
}

// Receiver is a collector on 127.0.0.1.
type Receiver struct {
	URL   string
	mu    sync.Mutex
	spans []Span
}

// Start starts a collector, and turns the traces of this process on until the test ends.
func Start(t testing.TB) *Receiver {
	t.Helper()
	r := &Receiver{}
	s := httptest.NewServer(http.HandlerFunc(r.receive))
	t.Cleanup(s.Close)
	r.URL = s.URL
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	stop, err := telemetry.Start(t.Context(), telemetry.Options{Endpoint: s.URL, Service: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stop(context.Background()) })
	return r
}

func (r *Receiver) receive(w http.ResponseWriter, q *http.Request) {
	data, err := io.ReadAll(q.Body)
	var m collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(data, &m)
	}
	if err != nil || q.URL.Path != "/v1/traces" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range m.ResourceSpans {
		service := ""
		for _, a := range resource.GetResource().GetAttributes() {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				span := Span{Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId), Name: s.Name, Service: service,
					Began: time.Unix(0, int64(s.StartTimeUnixNano)), Ended: time.Unix(0, int64(s.EndTimeUnixNano)), Attributes: map[string]string{}, Failed: s.GetStatus().GetCode() == 2}
				for _, a := range s.Attributes {
					span.Attributes[a.Key] = a.Value.GetStringValue()
				}
				r.spans = append(r.spans, span)
			}
		}
	}
}

// Spans returns the spans of a trace so far, by name.
func (r *Receiver) Spans(trace string) map[string][]Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := map[string][]Span{}
	for _, s := range r.spans {
		if s.Trace == trace {
			list[s.Name] = append(list[s.Name], s)
		}
	}
	return list
}
