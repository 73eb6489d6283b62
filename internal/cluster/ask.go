package cluster

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// timeoutHeader has the time in milliseconds that the asker waits.
	timeoutHeader = "Timeout-Ms"
	// declinedHeader is in an answer without content.
	declinedHeader = "Declined"
	// avoidTime is how long a node that did not answer in time is not asked.
	avoidTime = 15 * time.Second
	// overhead is the part of a message's maximum size that is left for headers, in bytes.
	overhead = 8 << 10
	// maxPending and maxPendingBytes bound the questions that wait in memory.
	maxPending      = 1024
	maxPendingBytes = 64 << 20
)

// Errors of Ask.
var (
	// ErrDeclined is returned when a node does not answer a question now.
	ErrDeclined = errors.New("cluster: the node declines")
	// ErrNoAnswer is returned, wrapped, when a node did not answer in time, or lately did not.
	ErrNoAnswer = errors.New("cluster: the node does not answer")
	// ErrTooLarge is returned for a question that does not fit into a message.
	ErrTooLarge = errors.New("cluster: the question is larger than a message may be")
)

// Question is what a node asks another.
type Question struct {
	Header nats.Header
	Data   []byte
}

func subject(kind, node string) string { return kind + ".node." + node }

// Answer calls answer with each question of a kind, in a goroutine of its own, until stop is
// called, which waits for the calls in progress. The context ends when the asker waits no
// longer. A question is declined if answer returns false.
func (m *Members) Answer(kind string, answer func(context.Context, Question) (data []byte, ok bool)) (stop func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	var calls sync.WaitGroup
	sub, err := m.b.Conn.Subscribe(subject(kind, m.Self()), func(q *nats.Msg) {
		timeout, err := strconv.ParseInt(q.Header.Get(timeoutHeader), 10, 32)
		if err != nil || timeout <= 0 || q.Reply == "" {
			return // not by this program
		}
		received := time.Now()
		calls.Go(func() {
			ctx, cancel := context.WithDeadline(ctx, received.Add(time.Duration(timeout)*time.Millisecond))
			defer cancel()
			data, ok := answer(ctx, Question{q.Header, q.Data})
			reply := &nats.Msg{Subject: q.Reply, Data: data}
			if !ok || int64(len(data)) > m.b.Conn.MaxPayload()-overhead {
				reply = &nats.Msg{Subject: q.Reply, Header: nats.Header{declinedHeader: {"1"}}}
			}
			_ = m.b.Conn.PublishMsg(reply) // else the asker waits in vain, as for a lost message
		})
	})
	if err == nil {
		err = sub.SetPendingLimits(maxPending, maxPendingBytes)
	}
	if err == nil {
		err = m.b.Conn.Flush() // so that others find the subscription
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return func() {
		_ = sub.Unsubscribe() // fails only if the connection is closed
		calls.Wait()
		cancel()
	}, nil
}

// Ask asks a node a question of a kind and returns its answer, if it comes within limit. A node
// that did not answer in time is not asked for avoidTime.
func (m *Members) Ask(ctx context.Context, node, kind string, q Question, limit time.Duration) ([]byte, error) {
	if int64(len(q.Data)) > m.b.Conn.MaxPayload()-overhead {
		return nil, ErrTooLarge
	}
	if m.avoided(node) {
		return nil, ErrNoAnswer
	}
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if q.Header == nil {
		q.Header = nats.Header{}
	}
	q.Header.Set(timeoutHeader, strconv.FormatInt(max(limit.Milliseconds(), 1), 10))
	a, err := m.b.Conn.RequestMsgWithContext(waiting, &nats.Msg{Subject: subject(kind, node), Header: q.Header, Data: q.Data})
	switch {
	case err == nil && a.Header.Get(declinedHeader) != "":
		return nil, ErrDeclined
	case err == nil:
		return a.Data, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	m.avoid(node)
	return nil, fmt.Errorf("%w: %w", ErrNoAnswer, err)
}

func (m *Members) avoid(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.avoiding[node] = time.Now()
}

func (m *Members) avoided(node string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	since, ok := m.avoiding[node]
	if ok && time.Since(since) > avoidTime {
		delete(m.avoiding, node)
		ok = false
	}
	return ok
}

// Gone reports whether a node is known to have ended: it gives no sign of life, while this node's
// own are seen.
func (m *Members) Gone(id string) bool {
	if id == m.Self() || !m.Ready() {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, known := m.nodes[id]
	self, seen := m.nodes[m.Self()]
	return seen && time.Since(self.seen) < 3*m.beat && (!known || time.Since(n.seen) > m.ttl)
}
