package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/deepmed/anomaly/internal/telemetry"
	"github.com/spf13/pflag"
)

// traceFlags are the flags of commands that make traces.
type traceFlags struct{ endpoint string }

func (t *traceFlags) add(f *pflag.FlagSet) {
	f.StringVar(&t.endpoint, "otlp-endpoint", "", "`URL` of an OpenTelemetry collector that gets traces, such as http://127.0.0.1:4318 (default: that of OTEL_EXPORTER_OTLP_ENDPOINT, without that no traces)")
}

// traceEnd is the longest time to send the last traces.
const traceEnd = 5 * time.Second

// start turns traces on if there is an endpoint. stop must be called.
func (t *traceFlags) start(ctx context.Context, role string, log *slog.Logger) (stop func(), err error) {
	end, err := telemetry.Start(ctx, telemetry.Options{Endpoint: t.endpoint, Service: "anomaly-" + role, Version: version(), Log: log})
	if err != nil {
		return nil, err
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceEnd)
		defer cancel()
		if err := end(ctx); err != nil {
			log.Warn("the last traces were not sent", slog.Any("error", err))
		}
	}, nil
}
