package workers

import (
	"runtime"
	"syscall"
)

// lowerPriority sets the niceness of the calling goroutine's thread. Threads that
// ONNX Runtime starts from it inherit the niceness. The goroutine stays locked to
// the thread, which then ends with it: only a privileged process may raise a
// thread's priority again.
func lowerPriority(niceness int) {
	runtime.LockOSThread()
	// An error changes no result: the thread then competes like any other.
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), niceness)
}
