// Package brokertest starts NATS servers for tests: one inside the test's process, or a
// cluster of processes that can be killed, stopped and cut off. Only tests may import it.
package brokertest
