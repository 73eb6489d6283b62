package trainer

import (
	"fmt"
	"runtime/debug"
)

// MaxNiceness is the lowest priority there is.
const MaxNiceness = 19

// worker makes a function run with the niceness of the options, and its panic an
// error: nobody else would catch it in a goroutine of ours. It is for a goroutine
// that ends with the function, as the goroutine's thread then does.
func (o Options) worker(f func() error) func() error {
	return func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("trainer: panic: %v\n%s", p, debug.Stack())
			}
		}()
		if o.Niceness > 0 {
			stepBack(min(o.Niceness, MaxNiceness))
		}
		return f()
	}
}
