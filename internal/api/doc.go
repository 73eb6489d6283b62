// Package api is the HTTP face of the service, on Fiber: it reads requests,
// calls the trainer and the detector, and writes their answers. What the
// service can do is decided elsewhere; here is only how HTTP says it.
package api
