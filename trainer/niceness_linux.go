package trainer

import (
	"runtime"
	"syscall"
)

// stepBack lowers the priority of the calling goroutine's thread, and of every
// thread that ONNX Runtime starts from it: threads inherit their starter's
// niceness. The goroutine keeps the thread, which ends with it, because only the
// privileged may raise a priority again.
func stepBack(niceness int) {
	runtime.LockOSThread()
	// Without it the training is as important as anything else, and still right.
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), niceness)
}
