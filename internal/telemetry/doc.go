// Package telemetry makes traces of requests and jobs and sends them to an OpenTelemetry
// collector. Without Start nothing is made, and a span costs a few nanoseconds.
//
// Metrics are in package api. What a trace is about must not be decided here.
package telemetry
