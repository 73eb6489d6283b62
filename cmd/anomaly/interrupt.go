package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// interruptGrace is the time that an interrupted command waits for work that does not
// end, such as a read from a network or a pipe.
const interruptGrace = 2 * time.Second

var (
	errInterrupted    = errors.New("interrupted; nothing was written")
	errNothingLearned = errors.New("interrupted before the training had learned anything; nothing was written")
)

// releaseSignals lets the next SIGINT or SIGTERM end the process, whatever it is doing.
func releaseSignals() { signal.Reset(os.Interrupt, syscall.SIGTERM) }

// untilSignal returns a context that ends at the signal. The next signal of any kind then
// ends the process.
func untilSignal(parent context.Context, s os.Signal) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(parent, s)
	context.AfterFunc(ctx, releaseSignals)
	return ctx, stop
}

// interruptible handles the interrupts of a training. The first closes stop, which ends
// the training early with a model, and the second signal ends ctx, which ends it without
// one. While learned is false there is no model to write, and the first ends ctx.
//
// If done is not called within grace after the second signal, it calls exit, in a
// goroutine: the training hangs.
func interruptible(parent context.Context, w io.Writer, learned *atomic.Bool, grace time.Duration, exit func()) (ctx context.Context, stop <-chan struct{}, done func()) {
	ctx, cancel := context.WithCancel(parent)
	stopped, finished := make(chan struct{}), make(chan struct{})
	interrupts := make(chan os.Signal, 2)
	signal.Notify(interrupts, os.Interrupt)
	go func() {
		select {
		case <-interrupts:
		case <-finished:
			return
		}
		if learned.Load() {
			fmt.Fprintln(w, "\nstopping: the model so far will be written; interrupt again to write nothing")
			close(stopped)
			select {
			case <-interrupts:
			case <-parent.Done(): // SIGTERM
			case <-finished:
				return
			}
			time.AfterFunc(grace, func() {
				select {
				case <-finished:
				default:
					exit()
				}
			})
		}
		releaseSignals()
		cancel()
	}()
	return ctx, stopped, func() {
		signal.Stop(interrupts)
		close(finished)
		cancel()
	}
}
