package bulk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/telemetry"
	"github.com/deepmed/anomaly/models"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// slots is the number of pieces that a process has at once: one is judged, the other is
	// received or its result is sent.
	slots = 2
	// maxDeliveries is how often a piece is tried. A process that ends in it, or is stopped
	// for longer than ackWait, is a try.
	maxDeliveries = 5
	// receiveTime is the duration of a request for a piece.
	receiveTime = 30 * time.Second
	// endedInterval is the time between two looks whether the job of a piece has ended.
	endedInterval = 500 * time.Millisecond
	// retryPause is the pause after a failure.
	retryPause = time.Second
)

// errJobEnded is the cause of the context of a piece whose job has ended.
var errJobEnded = errors.New("bulk: the job has ended")

// Work judges pieces until accepting ends. When working ends, the pieces in progress are
// given back.
func (b *Bulk) Work(accepting, working context.Context) {
	var group sync.WaitGroup
	for range slots {
		group.Go(func() {
			failed := false
			for accepting.Err() == nil {
				m, err := b.receive(accepting)
				if err == nil {
					failed = false
					if m != nil {
						b.handle(working, m)
					}
					continue
				}
				if accepting.Err() != nil {
					return
				}
				if !failed {
					b.o.Log.Warn("no pieces of jobs can be taken; it is tried again", slog.Any("error", err))
				}
				failed = true
				select {
				case <-accepting.Done():
				case <-time.After(retryPause):
				}
				if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrConsumerDeleted) {
					_ = b.openConsumer(accepting) // the next try finds out
				}
			}
		})
	}
	group.Wait()
}

// receive returns the next piece, or nil if there is none for receiveTime.
func (b *Bulk) receive(ctx context.Context) (m jetstream.Msg, err error) {
	ctx, cancel := context.WithTimeout(ctx, receiveTime)
	defer cancel()
	batch, err := (*b.consumer.Load()).Fetch(1, jetstream.FetchContext(ctx))
	if err != nil {
		return nil, err
	}
	for received := range batch.Messages() {
		m = received
	}
	if err := batch.Error(); m == nil && err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, nats.ErrTimeout) {
		return nil, err
	}
	return m, nil
}

// handle judges a piece, stores its result and acknowledges it.
func (b *Bulk) handle(working context.Context, m jetstream.Msg) {
	p, err := pieceOf(m.Subject(), workSubject)
	if err != nil { // not ours
		_ = m.Term()
		return
	}
	ctx, cancel := context.WithCancelCause(working)
	defer cancel(nil)
	ctx, span := telemetry.BeginConsumer(telemetry.Extract(ctx, telemetry.Headers(m.Headers())), "piece")
	span.String("job.id", p.job)
	span.Int("piece.index", p.index)
	var alive sync.WaitGroup
	alive.Go(func() { b.keepAlive(ctx, cancel, p, m) })
	err = b.piece(ctx, p, m)
	span.End(err)
	ended := errors.Is(context.Cause(ctx), errJobEnded)
	if ended {
		// The result may have been on its way when the job ended.
		err = b.purge(working, b.files, p.subject(resultSubject))
	}
	cancel(nil)
	alive.Wait()
	switch {
	case err == nil:
		err = m.Ack() // a piece that is delivered again has its result already
	case working.Err() != nil:
		err = m.Nak()
	default:
		b.o.Log.Warn("a piece of a job cannot be judged and is tried again", slog.String("job", p.job), slog.Int("piece", p.index), slog.Any("error", err))
		err = m.NakWithDelay(retryPause)
	}
	if err != nil && working.Err() == nil {
		b.o.Log.Debug("a piece of a job cannot be acknowledged", slog.String("job", p.job), slog.Any("error", err))
	}
}

// keepAlive reports that a piece is in progress, until ctx ends. It cancels ctx when the
// job has ended.
func (b *Bulk) keepAlive(ctx context.Context, cancel context.CancelCauseFunc, p pieceID, m jetstream.Msg) {
	alive, ended := time.NewTicker(heartbeat), time.NewTicker(endedInterval)
	defer alive.Stop()
	defer ended.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-alive.C:
			_ = m.InProgress() // if the servers do not answer, another worker does the piece too
		case <-ended.C:
			if unfinished, err := b.o.Unfinished(ctx, p.job); err == nil && !unfinished {
				cancel(errJobEnded)
				return
			}
		}
	}
}

// piece judges a piece and stores its result. It returns nil if the piece needs nothing
// more.
func (b *Bulk) piece(ctx context.Context, p pieceID, m jetstream.Msg) error {
	if unfinished, err := b.o.Unfinished(ctx, p.job); err != nil || !unfinished {
		return err
	}
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	if meta.NumDelivered > 1 {
		if _, err := b.message(ctx, p.subject(resultSubject)); !errors.Is(err, jetstream.ErrMsgNotFound) {
			return err // nil: another worker has done it
		}
	}
	if meta.NumDelivered > maxDeliveries {
		return b.fail(ctx, p, fmt.Sprintf("The service ended or failed %d times during piece %d of the images, which was not tried again", maxDeliveries, p.index+1))
	}
	images, err := b.images(ctx, p, m)
	if errors.Is(err, errPiece) {
		return b.fail(ctx, p, "The images are damaged in the store: submit the job again")
	}
	if err != nil {
		return err
	}
	lines, counts, err := b.judge(ctx, p, m, images)
	switch {
	case errors.Is(err, ErrModel):
		return b.fail(ctx, p, "The model of the job is not there any more: submit the job again")
	case err != nil:
		return err
	case len(lines) > maxResult:
		return b.fail(ctx, p, fmt.Sprintf("The results of %d images are larger than %d bytes: use a model with shorter names of classes", len(images), maxResult))
	}
	data, err := json.Marshal(counts)
	if err != nil {
		return err
	}
	if err := b.putResult(ctx, p, headerCounts, string(data), lines); err != nil {
		return err
	}
	if m.Headers().Get(headerChunks) != "" {
		return b.purge(ctx, b.files, p.subject(chunkSubject)+".>")
	}
	return nil
}

// fail stores a sentence as the result of a piece, with which its job fails. That of a job
// that has ended, whose files are gone, needs none.
func (b *Bulk) fail(ctx context.Context, p pieceID, sentence string) error {
	if unfinished, err := b.o.Unfinished(ctx, p.job); err != nil || !unfinished {
		return err
	}
	return b.putResult(ctx, p, headerFailure, sentence, nil)
}

// putResult stores a result. If the job has ended meanwhile, it removes it again.
func (b *Bulk) putResult(ctx context.Context, p pieceID, key, value string, data []byte) error {
	subject := p.subject(resultSubject)
	err := b.patiently(ctx, func() error {
		return b.putOnce(ctx, &nats.Msg{Subject: subject, Header: nats.Header{key: {value}}, Data: data})
	})
	if err != nil {
		return err
	}
	if unfinished, err := b.o.Unfinished(ctx, p.job); err != nil || unfinished {
		return nil
	}
	return b.purge(ctx, b.files, subject)
}

// images returns the images of a piece. It returns errPiece, wrapped, for a damaged one.
func (b *Bulk) images(ctx context.Context, p pieceID, m jetstream.Msg) ([]image, error) {
	text := m.Headers().Get(headerChunks)
	if text == "" {
		return decode(m.Data())
	}
	chunks, err := strconv.Atoi(text)
	if err != nil || chunks > maxChunks {
		return nil, errPiece
	}
	var data []byte
	for i := range chunks {
		chunk, err := b.message(ctx, p.chunk(i))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil, fmt.Errorf("%w: chunk %d is missing", errPiece, i)
		}
		if err != nil {
			return nil, err
		}
		if data == nil {
			data = make([]byte, 0, chunks*chunkBytes)
		}
		data = append(data, chunk.Data...)
	}
	return decode(data)
}

// judge returns the lines of a piece. One piece is judged at a time.
func (b *Bulk) judge(ctx context.Context, p pieceID, m jetstream.Msg, images []image) (lines []byte, counts Counts, err error) {
	d, release, err := b.o.Detector(ctx, p.job, m.Headers().Get(headerModel))
	if err != nil {
		return nil, counts, err
	}
	defer release()
	meta, err := metadataFor(d, m.Headers().Get(headerThreshold))
	if err != nil {
		return nil, counts, err
	}
	select {
	case b.judging <- struct{}{}:
	case <-ctx.Done():
		return nil, counts, context.Cause(ctx)
	}
	defer func() { <-b.judging }()
	j := judgement{scheduler: b.o.Scheduler, detector: d, meta: meta, limits: b.o.Images, threads: b.o.Threads}
	return j.lines(ctx, images)
}

// metadataFor returns the metadata with a threshold, or nil for none.
func metadataFor(d *inference.Detector, threshold string) (*models.Metadata, error) {
	if threshold == "" {
		return nil, nil
	}
	v, err := strconv.ParseFloat(threshold, 64)
	if err != nil {
		return nil, err
	}
	meta, ok := d.Model().Metadata.WithThreshold(v)
	if !ok {
		return nil, fmt.Errorf("bulk: unusable threshold %s", threshold)
	}
	return meta, nil
}
