package bulk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// workStream has a message for each piece that waits for a worker or is being judged,
	// and filesStream the results of pieces, and the pieces that are larger than a message.
	workStream  = "pieces"
	filesStream = "pieces-files"
	// Subjects. The id of the job follows, a dot, and the index of the piece; of a chunk
	// another dot and its index.
	workSubject   = "pieces.work."
	resultSubject = "pieces.result."
	chunkSubject  = "pieces.chunk."
	// workers is the name of the consumer of workStream that all processes share.
	workers = "workers"
	// chunkBytes is the largest part of a piece in one message. By default servers accept
	// messages of 1 MiB.
	chunkBytes = 512 << 10
	// maxChunks bounds the chunks of a piece, whatever the limits on images are.
	maxChunks = 4 << 10
	// maxResult is the largest result of a piece.
	maxResult = 900 << 10
	// purgeTimeout bounds a removal from a stream.
	purgeTimeout = time.Minute
)

// Times that tests shorten.
var (
	// ackWait is the time after which a piece is given to another worker if the one that has
	// it does not report that it is in progress, which it does at each heartbeat.
	ackWait   = 20 * time.Second
	heartbeat = 4 * time.Second
	// checkInterval is the time without a new result after which a coordinator looks for
	// pieces that are lost.
	checkInterval = 10 * time.Second
)

// Headers of messages.
const (
	headerModel     = "Anomaly-Model"     // of a piece: the SHA-256 of the model's file
	headerThreshold = "Anomaly-Threshold" // of a piece: the threshold to judge by, if it is not the model's
	headerChunks    = "Anomaly-Chunks"    // of a piece: the number of its chunks, if it is not in the message
	headerCounts    = "Anomaly-Counts"    // of a result: its Counts in JSON
	headerFailure   = "Anomaly-Failure"   // of a result: why there is none, a sentence for the job's user
)

// Options configure a Bulk.
type Options struct {
	Broker    *broker.Broker
	Scheduler *inference.Scheduler
	// Threads is the number of threads that judge.
	Threads int
	// Images limits each image.
	Images imagefile.Limits
	// Detector returns the detector of a job's model. The worker calls release when it has
	// judged a piece. It returns ErrModel, wrapped, if there is no such model.
	Detector func(ctx context.Context, job, sha256 string) (d *inference.Detector, release func(), err error)
	// Unfinished reports whether a job exists and has not ended.
	Unfinished func(ctx context.Context, job string) (bool, error)
	Log        *slog.Logger
}

// ErrModel is returned, wrapped, by Options.Detector when a job has no such model.
var ErrModel = errors.New("the model of the job is not there")

// Bulk judges the images of zips. It may be used concurrently.
type Bulk struct {
	o        Options
	work     jetstream.Stream
	files    jetstream.Stream
	consumer atomic.Pointer[jetstream.Consumer] // replaced if the servers have lost it
	// judging has a value while a piece is judged. Another may be received or its result
	// sent meanwhile.
	judging chan struct{}
}

// Open opens the streams of pieces and results, or creates them.
func Open(ctx context.Context, o Options) (*Bulk, error) {
	b := &Bulk{o: o, judging: make(chan struct{}, 1)}
	var err error
	if b.work, err = o.Broker.Stream(ctx, jetstream.StreamConfig{
		Name: workStream, Subjects: []string{workSubject + "*.*"}, Retention: jetstream.WorkQueuePolicy,
	}); err != nil {
		return nil, err
	}
	if b.files, err = o.Broker.Stream(ctx, jetstream.StreamConfig{
		Name: filesStream, Subjects: []string{resultSubject + "*.*", chunkSubject + "*.*.*"}, Discard: jetstream.DiscardNew,
	}); err != nil {
		return nil, err
	}
	if o.Broker.Embedded() {
		// The pieces that the process had when it ended need not wait for ackWait.
		err := b.work.DeleteConsumer(ctx, workers)
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, err
		}
	}
	return b, b.openConsumer(ctx)
}

func (b *Bulk) openConsumer(ctx context.Context) error {
	return b.o.Broker.Retry(ctx, func(ctx context.Context) error {
		c, err := b.work.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
			Durable: workers, FilterSubject: workSubject + "*.*", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: 1 << 14,
		})
		if err == nil {
			b.consumer.Store(&c)
		}
		return err
	})
}

// pieceID is a piece of a job.
type pieceID struct {
	job   string
	index int
}

func (p pieceID) subject(prefix string) string { return prefix + p.job + "." + strconv.Itoa(p.index) }

func (p pieceID) chunk(i int) string { return p.subject(chunkSubject) + "." + strconv.Itoa(i) }

// pieceOf returns the piece of a subject with a prefix.
func pieceOf(subject, prefix string) (p pieceID, err error) {
	job, index, _ := strings.Cut(strings.TrimPrefix(subject, prefix), ".")
	p.job = job
	if p.index, err = strconv.Atoi(index); err != nil || p.index < 0 {
		return p, fmt.Errorf("bulk: the subject %.200q is not that of a piece", subject)
	}
	return p, nil
}

// putOnce stores a message unless its subject has one.
func (b *Bulk) putOnce(ctx context.Context, m *nats.Msg) error {
	return b.o.Broker.PublishFirst(ctx, m)
}

// message returns the message of a subject in filesStream. It returns
// jetstream.ErrMsgNotFound if there is none.
func (b *Bulk) message(ctx context.Context, subject string) (m *jetstream.RawStreamMsg, err error) {
	err = b.o.Broker.Retry(ctx, func(ctx context.Context) (err error) {
		m, err = b.files.GetLastMsgForSubject(ctx, subject)
		return err
	})
	return m, err
}

// purge removes the messages of a subject, which may have wildcards.
func (b *Bulk) purge(ctx context.Context, s jetstream.Stream, subject string) error {
	return b.o.Broker.RetryFor(ctx, purgeTimeout, func(ctx context.Context) error {
		return s.Purge(ctx, jetstream.WithPurgeSubject(subject))
	})
}

// Remove removes the pieces and results of a job that has ended.
func (b *Bulk) Remove(ctx context.Context, job string) error {
	return errors.Join(b.purge(ctx, b.work, workSubject+job+".>"), b.purge(ctx, b.files, resultSubject+job+".>"), b.purge(ctx, b.files, chunkSubject+job+".>"))
}

// tidyInterval is the time between two calls of Tidy by Keep.
const tidyInterval = time.Minute

// Keep calls Tidy now and then until ctx ends, in one process of a cluster.
func (b *Bulk) Keep(ctx context.Context) {
	b.o.Broker.Lead(ctx, workStream, func(ctx context.Context) {
		for ctx.Err() == nil {
			if err := b.Tidy(ctx); err != nil && ctx.Err() == nil {
				b.o.Log.Warn("the pieces of jobs that have ended cannot be removed", slog.Any("error", err))
			}
			select {
			case <-ctx.Done():
			case <-time.After(tidyInterval):
			}
		}
	})
}

// Tidy removes the pieces and results of jobs that have ended or do not exist.
func (b *Bulk) Tidy(ctx context.Context) error {
	jobs := map[string]bool{}
	for _, s := range []jetstream.Stream{b.work, b.files} {
		subjects, _, err := b.o.Broker.Subjects(ctx, s, ">")
		if err != nil {
			return err
		}
		for subject := range subjects {
			if parts := strings.Split(subject, "."); len(parts) > 2 {
				jobs[parts[2]] = true
			}
		}
	}
	for job := range jobs {
		unfinished, err := b.o.Unfinished(ctx, job)
		if err == nil && !unfinished {
			err = b.Remove(ctx, job)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
