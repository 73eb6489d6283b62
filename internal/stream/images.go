package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	imageStream   = "images"
	verdictStream = "verdicts"
	consumerName  = "judges"
	// ackWait is how long an image may be without a sign of the worker that has it; another
	// gets it then. inProgress is the time between two signs.
	ackWait    = 30 * time.Second
	inProgress = 10 * time.Second
	// maxDeliveries is how often an image is tried. At maxStarts it is not begun again: none of
	// its workers has lived to the end of it, or was able to store a verdict.
	maxDeliveries = 10
	maxStarts     = 20
	// judgeTime bounds one try.
	judgeTime = 2 * time.Minute
	// window is how long a second image, or a second verdict, with the same id is recognized. It
	// is the same for both: an image that is accepted must not lose its verdict.
	window = 10 * time.Minute
	// verdictAge is how long verdicts are kept.
	verdictAge = 24 * time.Hour
	// maxID is the maximum length of an image's id.
	maxID = 200
	pause = 250 * time.Millisecond
)

// Options configure Work.
type Options struct {
	// Bytes is the maximum size of the images that wait. A publisher gets an error when they are
	// that many. VerdictBytes is that of the verdicts; the oldest are removed.
	Bytes, VerdictBytes int64
	// Parallel is the number of images that this process has at once, and MaxPending that of all
	// processes together.
	Parallel, MaxPending int
	Judge                Judge
	Log                  *slog.Logger
}

// Prepare creates the streams, or updates their limits.
func Prepare(ctx context.Context, b *broker.Broker, o Options) (jetstream.Consumer, error) {
	images, err := b.Stream(ctx, jetstream.StreamConfig{
		Name: imageStream, Subjects: []string{imagePrefix + ">"}, Description: "images to judge",
		Retention: jetstream.WorkQueuePolicy, MaxBytes: o.Bytes, Discard: jetstream.DiscardNew, Duplicates: window,
	})
	if err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	_, err = b.Stream(ctx, jetstream.StreamConfig{
		Name: verdictStream, Subjects: []string{verdictPrefix + ">"}, Description: "verdicts on images",
		MaxBytes: o.VerdictBytes, MaxAge: verdictAge, Discard: jetstream.DiscardOld, Duplicates: window,
	})
	if err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	var c jetstream.Consumer
	err = b.Retry(ctx, func(ctx context.Context) (err error) {
		c, err = images.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
			Durable: consumerName, AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxAckPending: o.MaxPending, MaxDeliver: -1,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	return c, nil
}

// Work judges images until accepting ends. Images in progress end within working.
func Work(accepting, working context.Context, b *broker.Broker, o Options) error {
	w := worker{b: b, o: o, slots: make(chan struct{}, o.Parallel)}
	c, err := Prepare(accepting, b, o)
	if err != nil {
		return err
	}
	defer w.images.Wait()
	for accepting.Err() == nil {
		if err := w.consume(accepting, working, c); err != nil && accepting.Err() == nil {
			o.Log.Warn("images cannot be read and are read again", slog.Any("error", err))
			select {
			case <-accepting.Done():
			case <-time.After(pause):
			}
			// The streams may have been removed.
			if again, err := Prepare(accepting, b, o); err == nil {
				c = again
			}
		}
	}
	return nil
}

// abandoned is the verdict on an image that was begun maxStarts times.
var abandoned = Answer{Status: 500, Body: []byte(`{"error":"The service ended or failed each time that it judged this image, which is not tried again"}`)}

type worker struct {
	b      *broker.Broker
	o      Options
	slots  chan struct{}
	images sync.WaitGroup
}

// consume judges images until accepting ends or they cannot be read.
func (w *worker) consume(accepting, working context.Context, c jetstream.Consumer) error {
	messages, err := c.Messages(jetstream.PullMaxMessages(w.o.Parallel), jetstream.PullExpiry(10*time.Second), jetstream.PullHeartbeat(2*time.Second))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(accepting, messages.Stop)
	defer stop()
	defer messages.Stop()
	for {
		select {
		case w.slots <- struct{}{}:
		case <-accepting.Done():
			return nil
		}
		m, err := messages.Next()
		if err != nil {
			<-w.slots
			if errors.Is(err, jetstream.ErrMsgIteratorClosed) && accepting.Err() != nil {
				return nil
			}
			return err
		}
		w.images.Go(func() {
			defer func() { <-w.slots }()
			w.judge(working, m)
		})
	}
}

// judge judges an image and publishes its verdict. It acknowledges the image when the verdict is
// stored: a worker that ends in between leaves the image to another, whose verdict has the same
// id and is dropped.
func (w *worker) judge(working context.Context, m jetstream.Msg) {
	ctx, cancel := context.WithTimeout(working, judgeTime)
	defer cancel()
	meta, err := m.Metadata()
	if err != nil {
		w.o.Log.Error("an image without metadata", slog.Any("error", err)) // not from the stream
		_ = m.Term()
		return
	}
	alive := time.NewTicker(inProgress)
	defer alive.Stop()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-alive.C:
				_ = m.InProgress() // else another worker gets it too
			}
		}
	}()
	model := strings.TrimPrefix(m.Subject(), imagePrefix)
	a := abandoned
	if meta.NumDelivered <= maxStarts {
		a = w.o.Judge(ctx, Image{Model: model, Explain: m.Headers().Get(HeaderExplain), Data: m.Data(), Wait: true})
	} else {
		w.o.Log.Error("an image is not tried again", slog.Uint64("sequence", meta.Sequence.Stream), slog.Uint64("times", meta.NumDelivered-1))
	}
	if a.Again && meta.NumDelivered < maxDeliveries || working.Err() != nil {
		// Later, and later each time.
		_ = m.NakWithDelay(min(time.Second<<min(meta.NumDelivered-1, 5), ackWait))
		return
	}
	if int64(len(a.Body)) > w.b.Conn.MaxPayload()-overhead {
		a = tooLarge
	}
	id := m.Headers().Get(jetstream.MsgIDHeader)
	if id == "" || len(id) > maxID {
		id = imageStream + "-" + strconv.FormatUint(meta.Sequence.Stream, 10)
	}
	v := &nats.Msg{Subject: verdictPrefix + model, Data: a.Body, Header: a.header()}
	v.Header.Set(jetstream.MsgIDHeader, id)
	if _, err := w.b.Publish(context.WithoutCancel(ctx), v); err != nil {
		w.o.Log.Warn("cannot publish a verdict", slog.String("image", id), slog.Any("error", err))
		_ = m.NakWithDelay(time.Second)
		return
	}
	acked, cancelAck := context.WithTimeout(context.WithoutCancel(ctx), ackWait/2)
	defer cancelAck()
	if err := m.DoubleAck(acked); err != nil {
		w.o.Log.Debug("a verdict may be published again", slog.String("image", id), slog.Any("error", err))
	}
}
