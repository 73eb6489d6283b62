// Package cluster has the processes of a cluster that are alive, and chooses among them those
// that own a key. It stores their signs of life in NATS. Models, jobs and HTTP must not be
// here.
package cluster
