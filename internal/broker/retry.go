package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// Timeout bounds an operation, most of which wait for disks. A store whose disk was full
	// does not answer. The election of a leader takes up to 10 seconds.
	Timeout = 20 * time.Second
	// tryTimeout bounds one try of an operation of a cluster.
	tryTimeout = 4 * time.Second
	// retryPause is the pause between two tries.
	retryPause = 100 * time.Millisecond
	// behindWait is the longest time for a server that is behind to become current.
	behindWait = 10 * time.Second
)

// ErrUnavailable is returned, wrapped, when the servers of a cluster did not answer in time.
// A change may have been made or not.
var ErrUnavailable = errors.New("the NATS servers do not answer, try again in a moment")

// Codes of JetStream's errors.
const (
	codeIncomplete      = 10004 // of a request to several servers
	codeTemporary       = 10008 // JetStream is temporarily not available
	codeNoLeader        = 10009
	codeNotEnabled      = 10076 // while a server starts or ends
	codeInProcess       = 10158 // an earlier try of the message is being stored
	codeNotReady        = 10163 // the new leader does not know the revision of a key yet
	codeStreamStarts    = 10194 // a stream is offline, and its text has the reason
	codeConsumerStarts  = 10195
	codeResources       = 10023
	codeMemory          = 10028
	codeStorage         = 10047
	codeStoreFailed     = 10077 // and its text has the reason
	codeStreamOffline   = 10118
	codeConsumerOffline = 10119
)

// apiError returns JetStream's own error in err, or nil.
func apiError(err error) *jetstream.APIError {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api
	}
	return nil
}

// IsNoSpace reports whether an error is that of a server that may not store more.
func IsNoSpace(err error) bool {
	api := apiError(err)
	if api == nil {
		return false
	}
	switch api.ErrorCode {
	case codeResources, codeMemory, codeStorage:
		return true
	case codeStoreFailed:
		return strings.Contains(api.Description, "maximum bytes") || strings.Contains(api.Description, "no space") || strings.Contains(api.Description, "resource limits")
	}
	return false
}

// unavailable reports whether an error may be gone when a server is back or a leader is
// elected.
func unavailable(err error) bool {
	for _, known := range []error{
		context.DeadlineExceeded, nats.ErrTimeout, nats.ErrNoResponders, nats.ErrNoServers, nats.ErrDisconnected, nats.ErrStaleConnection,
		nats.ErrReconnectBufExceeded, nats.ErrConnectionReconnecting, jetstream.ErrNoStreamResponse, jetstream.ErrNoHeartbeat, jetstream.ErrInvalidJSAck,
		jetstream.ErrConsumerLeadershipChanged, jetstream.ErrServerShutdown,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	if api := apiError(err); api != nil {
		switch api.ErrorCode {
		case codeIncomplete, codeTemporary, codeNoLeader, codeNotEnabled, codeInProcess, codeNotReady,
			codeStreamOffline, codeConsumerOffline, codeStreamStarts, codeConsumerStarts:
			return true
		case codeStoreFailed:
			// The text of a store that is just not ready; limits are final.
			return strings.Contains(api.Description, "closed") || strings.Contains(api.Description, "not current") || strings.Contains(api.Description, "raft")
		}
		return false
	}
	// The name of a server may be known only when it runs.
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
		return true
	}
	text := err.Error()
	return strings.Contains(text, "connection refused") || strings.Contains(text, "connection reset") || strings.Contains(text, "i/o timeout")
}

// Retry calls f within Timeout. With a cluster it calls f again while the servers do not
// answer: f must be safe to repeat, also when an earlier call has worked although its answer
// was lost. It returns ErrUnavailable, wrapped, if no call was answered in time.
func (b *Broker) Retry(ctx context.Context, f func(ctx context.Context) error) error {
	return b.RetryFor(ctx, Timeout, f)
}

// RetryFor is Retry with another limit.
func (b *Broker) RetryFor(ctx context.Context, limit time.Duration, f func(ctx context.Context) error) error {
	whole, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if b.Embedded() {
		return f(whole)
	}
	for {
		try, cancel := context.WithTimeout(whole, tryTimeout)
		err := f(try)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ended(ctx, err)
		case !unavailable(err):
			return err
		}
		select {
		case <-whole.Done():
			return ended(ctx, err)
		case <-time.After(retryPause):
		}
	}
}

// RetryMissing calls f again for up to behindWait while it returns the error missing for
// something that was stored: a server that was stopped answers, for a moment after that, as the
// leader that it was, without what was stored meanwhile.
func (b *Broker) RetryMissing(ctx context.Context, missing error, f func() error) error {
	for start := time.Now(); ; {
		err := f()
		if b.Embedded() || !errors.Is(err, missing) || time.Since(start) > behindWait {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryPause):
		}
	}
}

// ended returns the error of an operation whose time has ended, or that was cancelled; err is that
// of the last try.
func ended(ctx context.Context, err error) error {
	// A cause of the caller's own is the caller's decision.
	if cause := context.Cause(ctx); cause != nil && cause != context.DeadlineExceeded {
		return errors.Join(cause, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Publish stores a message, once also if it is sent again: it must have an id
// (jetstream.MsgIDHeader) that no other message of its stream has within two minutes, or
// replace what it sent before.
func (b *Broker) Publish(ctx context.Context, m *nats.Msg) (*jetstream.PubAck, error) {
	var ack *jetstream.PubAck
	err := b.Retry(ctx, func(ctx context.Context) (err error) {
		ack, err = b.JetStream.PublishMsg(ctx, m)
		return err
	})
	return ack, err
}
