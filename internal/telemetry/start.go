package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Environment variables of OpenTelemetry that turn traces on. The SDK reads the others:
// headers, certificates, timeouts, compression, the sampler, limits and the queue.
const (
	envEndpoint       = "OTEL_EXPORTER_OTLP_ENDPOINT"
	envTracesEndpoint = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	envProtocol       = "OTEL_EXPORTER_OTLP_PROTOCOL"
	envTracesProtocol = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
	envDisabled       = "OTEL_SDK_DISABLED"
	envExporter       = "OTEL_TRACES_EXPORTER"
)

var (
	// ErrEndpoint is returned for an endpoint that is not a URL.
	ErrEndpoint = errors.New("the OTLP endpoint is not usable")
	// ErrProtocol is returned for an OTLP protocol other than http/protobuf.
	ErrProtocol = errors.New("traces are sent by OTLP over HTTP only")
)

// Options configure Start.
type Options struct {
	// Endpoint is the URL of a collector, such as http://127.0.0.1:4318; empty means that of
	// the environment variables, and no traces without them.
	Endpoint string
	// Service is the service's name, unless OTEL_SERVICE_NAME is set.
	Service string
	// Version and Node describe the program and the process.
	Version, Node string
	Log           *slog.Logger
}

// tracer makes the spans; nil while traces are off.
var tracer atomic.Pointer[trace.Tracer]

// On reports whether traces are on.
func On() bool { return tracer.Load() != nil }

// Start turns traces on if an endpoint is configured, and returns a function that sends
// what is left and turns them off. A collector that does not answer is tried again; traces
// are dropped then, and nothing waits for it. It returns ErrEndpoint and ErrProtocol,
// wrapped.
func Start(ctx context.Context, o Options) (stop func(context.Context) error, err error) {
	none := func(context.Context) error { return nil }
	if !wanted(o) {
		return none, nil
	}
	for _, name := range []string{envProtocol, envTracesProtocol} {
		if p := os.Getenv(name); p != "" && p != "http/protobuf" {
			return none, fmt.Errorf("%w: unset %s=%q, or set it to http/protobuf", ErrProtocol, name, p)
		}
	}
	var options []otlptracehttp.Option
	if o.Endpoint != "" {
		u, err := url.Parse(o.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return none, fmt.Errorf("%w: %q, expected a URL such as http://127.0.0.1:4318", ErrEndpoint, o.Endpoint)
		}
		if strings.Trim(u.Path, "/") == "" {
			u.Path = "/v1/traces"
		}
		options = append(options, otlptracehttp.WithEndpointURL(u.String()))
	}
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return none, fmt.Errorf("%w: %w", ErrEndpoint, err)
	}
	return use(ctx, o, sdktrace.WithBatcher(exporter))
}

// wanted reports whether an endpoint is configured.
func wanted(o Options) bool {
	if strings.EqualFold(os.Getenv(envDisabled), "true") || os.Getenv(envExporter) == "none" {
		return false
	}
	return o.Endpoint != "" || os.Getenv(envEndpoint) != "" || os.Getenv(envTracesEndpoint) != ""
}

// use turns traces on.
func use(ctx context.Context, o Options, processor sdktrace.TracerProviderOption) (func(context.Context) error, error) {
	described, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", o.Service),
		attribute.String("service.version", o.Version),
		attribute.String("service.instance.id", o.Node),
	), resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil && described == nil {
		return nil, err
	}
	if o.Log != nil {
		var mu sync.Mutex
		var last time.Time
		// Errors of the exporter come every few seconds while the collector is away.
		otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if last.IsZero() || time.Since(last) >= time.Minute {
				last = time.Now()
				o.Log.Warn("traces cannot be sent", slog.Any("error", err))
			}
		}))
	}
	provider := sdktrace.NewTracerProvider(processor, sdktrace.WithResource(described))
	t := provider.Tracer("github.com/deepmed/anomaly")
	tracer.Store(&t)
	return func(ctx context.Context) error {
		tracer.CompareAndSwap(&t, nil)
		return provider.Shutdown(ctx)
	}, nil
}
