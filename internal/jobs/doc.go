// Package jobs is a durable queue of jobs. It keeps the states, uploads and results of jobs in
// NATS JetStream: in a folder of this process, or in a cluster whose nodes share the queue. A
// job that Submit has accepted survives the end of any process in any way, and ends exactly
// once.
//
// What a job computes is the caller's Worker. HTTP, training and models must not be
// here.
package jobs
