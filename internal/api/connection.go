package api

import (
	"context"
	"net"
	"syscall"
	"time"
)

// connectionPoll is the interval at which a connection is checked for being closed.
const connectionPoll = 250 * time.Millisecond

// watchConnection returns a context that is cancelled with errClientGone when the
// client closes the connection. The request's body must have been read to its end.
// The caller must call the returned function when the request ends.
func watchConnection(ctx context.Context, conn net.Conn) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	sys, ok := conn.(syscall.Conn)
	if !ok {
		return ctx, func() { cancel(context.Canceled) }
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return ctx, func() { cancel(context.Canceled) }
	}
	// The read deadline of the body would make closedByPeer fail.
	_ = conn.SetReadDeadline(time.Time{})
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(connectionPoll)
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

// closedByPeer reports whether the peer has closed the connection. It peeks at the
// next byte and consumes none.
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
		return true // do not wait for data
	})
	return closed || err != nil
}
