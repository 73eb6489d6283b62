// Package jobs is a durable queue of jobs. It runs one job at a time and keeps the
// states, uploads and models of jobs in NATS JetStream, which runs inside the process
// and stores them in a folder. A job that Submit has accepted survives the end of the
// process in any way, and ends exactly once.
//
// What a job computes is the caller's Worker. HTTP, training and models must not be
// here.
package jobs
