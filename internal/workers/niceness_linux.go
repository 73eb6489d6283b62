package workers

import (
	"runtime"
	"syscall"
)

// lowerPriority sets the niceness of the calling goroutine's thread. Threads that ONNX
// Runtime starts from this thread inherit the niceness. The goroutine stays locked to the
// thread, which ends with it: only a privileged process may raise the priority again.
func lowerPriority(niceness int) {
	runtime.LockOSThread()
	// After an error the thread has the normal priority. The results are the same.
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), niceness)
}
