package stream

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/nats-io/nats.go"
)

// Subjects, before the name of a model, which may have dots.
const (
	detectPrefix  = "anomaly.detect."
	imagePrefix   = "anomaly.images."
	verdictPrefix = "anomaly.verdicts."
)

// Headers of messages.
const (
	// HeaderStatus is the status of an answer or a verdict, as that of HTTP: 200, or that of the
	// error in its JSON.
	HeaderStatus = "Anomaly-Status"
	// HeaderModel is the SHA-256 of the version that judged.
	HeaderModel = "X-Model-Sha256"
	// HeaderExplain asks for regions and a heat map, as the field explain of HTTP.
	HeaderExplain = "Explain"
)

const (
	// requestGroup is the queue group of all nodes: one of them gets a request.
	requestGroup = "anomaly"
	// requestTime bounds the time of a request.
	requestTime = 30 * time.Second
	// maxPending and maxPendingBytes bound the requests that wait in memory.
	maxPending      = 1024
	maxPendingBytes = 64 << 20
	// overhead is the part of a message's maximum size that is left for headers, in bytes.
	overhead = 8 << 10
)

// Image is an image to judge.
type Image struct {
	Model   string
	Explain string
	Data    []byte
	// Wait reports whether the image may wait for others.
	Wait bool
}

// Answer is a verdict, or the reason why there is none.
type Answer struct {
	// Status is that of HTTP, and Body the JSON.
	Status int
	Body   []byte
	// Version is the SHA-256 of the version that judged; empty for none.
	Version string
	// Again reports whether another try, or another node, may have another answer.
	Again bool
}

// Judge judges an image.
type Judge func(context.Context, Image) Answer

// Serve answers requests until stop is called, which waits for those in progress.
func Serve(b *broker.Broker, judge Judge, log *slog.Logger) (stop func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	var calls sync.WaitGroup
	sub, err := b.Conn.QueueSubscribe(detectPrefix+">", requestGroup, func(q *nats.Msg) {
		if q.Reply == "" {
			return // nobody wants the answer
		}
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, requestTime)
			defer cancel()
			a := judge(ctx, Image{Model: strings.TrimPrefix(q.Subject, detectPrefix), Explain: q.Header.Get(HeaderExplain), Data: q.Data})
			m := &nats.Msg{Subject: q.Reply, Data: a.Body, Header: a.header()}
			if int64(len(m.Data)) > b.Conn.MaxPayload()-overhead {
				m.Data, m.Header = tooLarge.Body, tooLarge.header()
			}
			if err := b.Conn.PublishMsg(m); err != nil {
				log.Debug("cannot answer a request", slog.Any("error", err))
			}
		})
	})
	if err == nil {
		err = sub.SetPendingLimits(maxPending, maxPendingBytes)
	}
	if err == nil {
		err = b.Conn.Flush() // so that requests find the subscription
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("stream: %w", err)
	}
	return func() {
		_ = sub.Unsubscribe() // fails only if the connection is closed
		calls.Wait()
		cancel()
	}, nil
}

// tooLarge is the answer instead of one that is larger than a message may be.
var tooLarge = Answer{Status: 413, Body: []byte(`{"error":"The answer is larger than a NATS message may be: ask without explain, or over HTTP"}`)}

func (a Answer) header() nats.Header {
	h := nats.Header{HeaderStatus: {strconv.Itoa(a.Status)}}
	if a.Version != "" {
		h.Set(HeaderModel, a.Version)
	}
	return h
}
