package api

import (
	"context"
	"net"
	"syscall"
	"time"
)

// watchPeriod is how often a connection is looked at for its client's leaving.
const watchPeriod = 250 * time.Millisecond

// whileConnected gives a context that ends with errClientGone when the client
// closes the connection. Only a request whose body was read to its end may be
// watched. The returned function must be called when the request ends.
func whileConnected(ctx context.Context, conn net.Conn) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	sys, ok := conn.(syscall.Conn)
	if !ok {
		return ctx, func() { cancel(context.Canceled) }
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return ctx, func() { cancel(context.Canceled) }
	}
	// A read deadline that the body left behind would end the look as well.
	_ = conn.SetReadDeadline(time.Time{})
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(watchPeriod)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if closedByPeer(raw) {
					cancel(errClientGone)
					return
				}
			}
		}
	}()
	return ctx, func() {
		close(stop)
		<-done
		cancel(context.Canceled)
	}
}

// closedByPeer looks at the next byte without taking it off the connection.
func closedByPeer(raw syscall.RawConn) bool {
	closed := false
	err := raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EAGAIN || err == syscall.EINTR:
		case err != nil || n == 0:
			closed = true
		}
		return true // never wait for more
	})
	return closed || err != nil
}
