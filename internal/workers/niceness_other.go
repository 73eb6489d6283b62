//go:build !linux

package workers

// lowerPriority does nothing: elsewhere a thread has no niceness of its own.
func lowerPriority(int) {}
