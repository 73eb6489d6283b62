// Package bulk judges all images of a zip with one model, divided between any number of
// processes. A coordinator cuts the zip into pieces and joins their results in the order of
// the zip; every process judges pieces. Pieces and results are in NATS JetStream, so that
// whoever is killed, another goes on with what is there.
//
// The queue of jobs and HTTP must not be here.
package bulk
