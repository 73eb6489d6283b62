// Package stream judges images that arrive as NATS messages: requests with an answer, and a
// durable stream of images whose verdicts are a stream too. How an image is judged, models and
// HTTP must not be here.
package stream
