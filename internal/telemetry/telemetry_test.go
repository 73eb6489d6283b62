package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
)

func TestStart_MakesNothingWithoutAnEndpoint(t *testing.T) {
	for _, env := range []map[string]string{
		{},
		{envEndpoint: "http://127.0.0.1:1", envDisabled: "true"},
		{envEndpoint: "http://127.0.0.1:1", envExporter: "none"},
	} {
		for _, name := range []string{envEndpoint, envTracesEndpoint, envDisabled, envExporter} {
			t.Setenv(name, env[name])
		}
		stop, err := Start(t.Context(), Options{Service: "test"})
		if err != nil || On() {
			t.Errorf("%v: on: %v, error %v", env, On(), err)
		}
		if err := stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestStart_RefusesWhatItCannotUse(t *testing.T) {
	for _, c := range []struct {
		endpoint, protocol string
		want               error
	}{
		{"127.0.0.1:4318", "", ErrEndpoint},
		{"grpc://127.0.0.1:4317", "", ErrEndpoint},
		{"http://", "", ErrEndpoint},
		{"http://127.0.0.1:4318", "grpc", ErrProtocol},
		{"http://127.0.0.1:4318", "http/json", ErrProtocol},
	} {
		t.Setenv(envProtocol, c.protocol)
		_, err := Start(t.Context(), Options{Endpoint: c.endpoint})
		if !errors.Is(err, c.want) || On() {
			t.Errorf("%s, %q: %v, expected %v", c.endpoint, c.protocol, err, c.want)
		}
	}
}

func TestSpan_CostsNoMemoryWhileTracesAreOff(t *testing.T) {
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		ctx, s := Begin(ctx, "a")
		s.String("b", "c")
		s.Int("d", 1)
		Past(ctx, "e", time.Time{}, time.Time{})
		Inject(ctx, nil)
		s.End(nil)
		if Stored(ctx) != "" {
			t.Error("a trace")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// serve starts a server that counts the traces that are sent to it.
func serve(t *testing.T, status int) (url string, paths chan string) {
	paths = make(chan string, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case paths <- r.URL.Path + " " + r.Header.Get("Content-Type"):
		default:
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(s.Close)
	return s.URL, paths
}

func TestStart_SendsToTheEndpointOfTheOptionOrTheEnvironment(t *testing.T) {
	url, paths := serve(t, http.StatusOK)
	for _, c := range []struct{ option, env, want string }{
		{url, "", "/v1/traces"},
		{url + "/", "", "/v1/traces"},
		{url + "/other/v1/traces", "", "/other/v1/traces"},
		{"", url, "/v1/traces"},
	} {
		t.Setenv(envEndpoint, c.env)
		stop, err := Start(t.Context(), Options{Endpoint: c.option, Service: "test"})
		if err != nil || !On() {
			t.Fatalf("%+v: on: %v, error %v", c, On(), err)
		}
		_, s := Begin(t.Context(), "a")
		s.End(nil)
		if err := stop(t.Context()); err != nil || On() {
			t.Errorf("%+v: on afterwards: %v, error %v", c, On(), err)
		}
		if got := <-paths; got != c.want+" application/x-protobuf" {
			t.Errorf("%+v: sent to %s", c, got)
		}
	}
}

func TestStart_DoesNotWaitForACollectorThatIsAway(t *testing.T) {
	stop, err := Start(t.Context(), Options{Endpoint: "http://127.0.0.1:1", Service: "test"})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 10000 {
		_, s := Begin(t.Context(), "a")
		s.End(nil)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("10,000 spans took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_ = stop(ctx) // fails: nothing was sent
	if time.Since(began) > 10*time.Second || On() {
		t.Errorf("stopped after %v; on: %v", time.Since(began), On())
	}
}

func TestTrace_TravelsInRecordsAndHeaders(t *testing.T) {
	url, _ := serve(t, http.StatusOK)
	stop, err := Start(t.Context(), Options{Endpoint: url, Service: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stop(context.Background()) }()
	ctx, s := Begin(t.Context(), "a")
	defer s.End(nil)
	want := trace.SpanContextFromContext(ctx).TraceID()
	headers, text := Headers{}, Map{}
	Inject(ctx, headers)
	Inject(ctx, text)
	for name, got := range map[string]context.Context{
		"record":  Resume(t.Context(), Stored(ctx)),
		"headers": Extract(t.Context(), headers),
		"map":     Extract(t.Context(), text),
		"with":    With(t.Context(), ctx),
	} {
		if id := trace.SpanContextFromContext(got).TraceID(); id != want {
			t.Errorf("%s: trace %s, expected %s", name, id, want)
		}
	}
	for _, bad := range []Map{
		{"traceparent": "00-zz-1-01"},
		{"traceparent": "00-" + want.String() + "-00f067aa0ba902b7-01", "tracestate": strings.Repeat("a=b,", 200)},
		{},
	} {
		if id := trace.SpanContextFromContext(Extract(t.Context(), bad)); id.IsValid() {
			t.Errorf("%v is accepted", bad)
		}
	}
}

func TestSpan_HasNoTextOfAnError(t *testing.T) {
	bodies := make(chan string, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		bodies <- string(data)
	}))
	defer receiver.Close()
	stop, err := Start(t.Context(), Options{Endpoint: receiver.URL, Service: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{errors.New("patient.png is no image"), fmt.Errorf("patient.png: %w", context.Canceled), fmt.Errorf("patient.png: %w", context.DeadlineExceeded)} {
		_, s := Begin(t.Context(), "a")
		s.End(err)
	}
	if err := stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	body := <-bodies
	for text, want := range map[string]bool{"failed": true, "cancelled": true, "timed out": true, "patient": false} {
		if strings.Contains(body, text) != want {
			t.Errorf("the traces have %q: %t", text, !want)
		}
	}
}

func BenchmarkSpan(b *testing.B) {
	run := func(b *testing.B) {
		for range b.N {
			_, s := Begin(b.Context(), "a")
			s.Int("b", 1)
			s.End(nil)
		}
	}
	b.Run("off", run)
	b.Run("on", func(b *testing.B) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
		defer s.Close()
		stop, err := Start(b.Context(), Options{Endpoint: s.URL, Service: "test"})
		if err != nil {
			b.Fatal(err)
		}
		run(b)
		b.StopTimer()
		_ = stop(context.Background())
	})
}
