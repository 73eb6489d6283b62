// Package broker connects a process to NATS JetStream: to a server inside the process, whose
// store is a folder, or to the servers of a cluster. It has what several packages store there
// with: key-value buckets with compare-and-set, files, a watch that misses nothing, and
// leases. Operations are bounded in time, and repeated while a cluster elects a leader.
//
// Jobs, models and HTTP must not be here.
package broker
