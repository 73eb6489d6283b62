//go:build !linux

package trainer

// stepBack does nothing where a thread has no priority of its own.
func stepBack(int) {}
