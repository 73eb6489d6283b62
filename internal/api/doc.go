// Package api serves training, calibration and detection over HTTP, on Fiber. It
// parses requests, admits them within the service's limits, calls the trainer and
// the detector, and writes their results. How a model is trained, stored or run must
// not be decided here.
package api
