//go:build !linux

package workers

// lowerPriority does nothing: only Linux has a niceness for each thread.
func lowerPriority(int) {}
