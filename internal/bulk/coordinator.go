package bulk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/telemetry"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Job is a zip to judge.
type Job struct {
	// ID is the id of the job. A job of the same id continues with the pieces and results
	// of an earlier coordinator, whose zip, model and limits must have been the same.
	ID     string
	Images *dataset.ImageList
	// Model is the SHA-256 of the model's file, and Line what LineBytes returns of its names
	// of classes.
	Model string
	Line  int
	// Threshold, if not nil, is judged by instead of the model's own.
	Threshold *float64
	// Progress, if not nil, is called with the numbers of images so far.
	Progress func(Counts)
	// Sharers, if not nil, returns how many jobs, this one included, share what the workers
	// do for one caller.
	Sharers func() int
}

// Failure is an error that ends a job. Its text is a sentence for the job's user.
type Failure struct{ Sentence string }

func (f *Failure) Error() string { return f.Sentence }

const (
	// minWindow and maxWindow bound the pieces of a caller that are stored without a result;
	// between them it is one more than all workers can have. So the workers never wait for
	// the coordinator, and of several callers, whose pieces are judged in the order in which
	// they were stored, each has the same share of the workers.
	minWindow = 3
	maxWindow = 64
	// windowBytes bounds the bytes of these pieces beyond minWindow.
	windowBytes = 64 << 20
	// windowInterval is the time between two looks how many workers there are.
	windowInterval = time.Second
	// spareDisk is what must remain of the disk of a server inside the process, in bytes.
	spareDisk = 64 << 20
)

// ErrNoSpace is returned, wrapped, when the disk has too little space left for pieces.
var ErrNoSpace = errors.New("the disk has too little space left")

// Results reads the results of a job: a line for each image, in the order of the zip.
type Results struct {
	Counts Counts

	ctx       context.Context
	b         *Bulk
	sequences []uint64 // of the results of the pieces
	next      int
	rest      []byte
}

// Run judges the images of a job. It returns when each piece has a result; the results are
// readable until ctx ends or Remove is called. An error is a *Failure, ErrNoSpace,
// dataset.ErrTooLarge, the cause of ctx, or one of the service.
func (b *Bulk) Run(ctx context.Context, job Job) (*Results, error) {
	c := &coordination{Bulk: b, job: job, window: minWindow, results: make(chan result)}
	if err := CheckResults(job.Images, job.Line); err != nil {
		return nil, err
	}
	c.ends = plan(job.Images, b.o.Images, job.Line)
	c.pieces = make([]pieceState, len(c.ends))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := c.resume(ctx); err != nil {
		return nil, err
	}
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		c.follow(ctx)
	}()
	err := c.coordinate(ctx)
	cancel()
	<-followed
	if err != nil {
		return nil, err
	}
	r := &Results{Counts: c.counts, b: b}
	for _, p := range c.pieces {
		r.sequences = append(r.sequences, p.result)
	}
	return r, nil
}

// pieceState is what a coordinator knows of a piece.
type pieceState struct {
	stored bool   // the piece is stored, or was
	bytes  int64  // its size
	result uint64 // sequence of its result; 0 for none
}

// result is a result of a piece.
type result struct {
	index    int
	sequence uint64
	header   nats.Header
}

// coordination is the work of a coordinator.
type coordination struct {
	*Bulk
	job    Job
	ends   []int
	pieces []pieceState
	counts Counts
	done   int // pieces with results
	next   int // piece to store next
	// waiting is the number of pieces that are stored and have no result, and waitingBytes
	// their size.
	waiting      int
	waitingBytes int64
	window       int
	results      chan result
}

// coordinate stores pieces and receives results until all are there.
func (c *coordination) coordinate(ctx context.Context) error {
	windows := time.NewTicker(windowInterval)
	defer windows.Stop()
	last := time.Now() // when the last result came
	c.measureWindow(ctx)
	for c.done < len(c.pieces) {
		if err := c.fill(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case r := <-c.results:
			last = time.Now()
			if err := c.take(r); err != nil {
				return err
			}
		case <-windows.C:
			c.measureWindow(ctx)
			if time.Since(last) < checkInterval {
				continue
			}
			last = time.Now()
			if err := c.findLost(ctx); err != nil && ctx.Err() == nil {
				c.o.Log.Warn("the pieces of a job cannot be looked up", slog.String("job", c.job.ID), slog.Any("error", err))
			}
		}
	}
	return nil
}

// fill stores pieces up to the window.
func (c *coordination) fill(ctx context.Context) error {
	for c.next < len(c.pieces) && c.waiting < c.window && (c.waiting < minWindow || c.waitingBytes < windowBytes) {
		// A result is worth more than the next piece.
		select {
		case r := <-c.results:
			if err := c.take(r); err != nil {
				return err
			}
			continue
		default:
		}
		p := &c.pieces[c.next]
		if p.result == 0 && !p.stored {
			if err := c.store(ctx, c.next); err != nil {
				return err
			}
			c.waiting++
			c.waitingBytes += p.bytes
		}
		c.next++
	}
	return nil
}

// store stores a piece. While the servers of a cluster do not answer, it waits.
func (c *coordination) store(ctx context.Context, index int) error {
	if free, err := c.o.Broker.Space(); err != nil {
		return err
	} else if free < spareDisk {
		return ErrNoSpace
	}
	from := 0
	if index > 0 {
		from = c.ends[index-1]
	}
	ctx, span := telemetry.BeginProducer(ctx, "piece store")
	defer span.End(nil)
	span.Int("piece.index", index)
	span.Int("piece.images", c.ends[index]-from)
	piece := encode(c.job.Images, from, c.ends[index], c.o.Images)
	p := pieceID{c.job.ID, index}
	m := &nats.Msg{Subject: p.subject(workSubject), Header: nats.Header{headerModel: {c.job.Model}}, Data: piece}
	telemetry.Inject(ctx, telemetry.Headers(m.Header))
	if t := c.job.Threshold; t != nil {
		m.Header.Set(headerThreshold, strconv.FormatFloat(*t, 'g', -1, 64))
	}
	if len(piece) > chunkBytes {
		n := 0
		for rest := piece; len(rest) > 0; n++ {
			size := min(len(rest), chunkBytes)
			if err := c.patiently(ctx, func() error {
				return c.putOnce(ctx, &nats.Msg{Subject: p.chunk(n), Data: rest[:size]})
			}); err != nil {
				return err
			}
			rest = rest[size:]
		}
		m.Header.Set(headerChunks, strconv.Itoa(n))
		m.Data = nil
	}
	c.pieces[index].bytes, c.pieces[index].stored = int64(len(piece)), true
	return c.patiently(ctx, func() error { return c.putOnce(ctx, m) })
}

// patiently calls f until it fails for another reason than servers that do not answer.
func (b *Bulk) patiently(ctx context.Context, f func() error) error {
	for {
		err := f()
		if !errors.Is(err, broker.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
		b.o.Log.Warn("the NATS servers do not answer; it is tried again", slog.Any("error", err))
	}
}

// take counts a result. It returns a *Failure for that of a piece that failed.
func (c *coordination) take(r result) error {
	p := &c.pieces[r.index]
	if p.result != 0 {
		return nil
	}
	if sentence := r.header.Get(headerFailure); sentence != "" {
		return &Failure{sentence}
	}
	var counts Counts
	if err := json.Unmarshal([]byte(r.header.Get(headerCounts)), &counts); err != nil {
		return fmt.Errorf("bulk: the result of a piece: %w", err)
	}
	p.result = r.sequence
	c.done++
	c.counts.add(counts)
	if p.stored {
		c.waiting--
		c.waitingBytes -= p.bytes
	}
	if c.job.Progress != nil {
		c.job.Progress(c.counts)
	}
	return nil
}

// measureWindow sets the window by the number of pieces that all workers can have.
func (c *coordination) measureWindow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, windowInterval)
	defer cancel()
	info, err := (*c.consumer.Load()).Info(ctx)
	if err != nil {
		return
	}
	c.window = min(max(info.NumAckPending+info.NumWaiting+1, minWindow), maxWindow)
	if c.job.Sharers != nil {
		n := max(c.job.Sharers(), 1)
		c.window = (c.window + n - 1) / n
	}
}

// resume finds the pieces and the results of an earlier coordinator.
func (c *coordination) resume(ctx context.Context) error {
	// A piece gets its result before its message is removed: one that has neither, in this
	// order, was not stored.
	work, _, err := c.o.Broker.Subjects(ctx, c.work, workSubject+c.job.ID+".*")
	if err != nil {
		return err
	}
	results, _, err := c.o.Broker.Subjects(ctx, c.files, resultSubject+c.job.ID+".*")
	if err != nil {
		return err
	}
	for subject := range results {
		if err := c.readResult(ctx, subject); err != nil {
			return err
		}
	}
	for subject := range work {
		p, err := pieceOf(subject, workSubject)
		if err != nil {
			return err
		}
		if p.index < len(c.pieces) && c.pieces[p.index].result == 0 {
			c.pieces[p.index].stored = true
			c.waiting++
		}
	}
	return nil
}

// readResult takes the result of a subject, if there is one.
func (c *coordination) readResult(ctx context.Context, subject string) error {
	p, err := pieceOf(subject, resultSubject)
	if err != nil {
		return err
	}
	if p.index >= len(c.pieces) {
		return errPiece
	}
	m, err := c.message(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.take(result{p.index, m.Sequence, m.Header})
}

// findLost takes results that follow has missed, and stores pieces again that have neither
// a message nor a result.
func (c *coordination) findLost(ctx context.Context) error {
	// A piece gets its result before its message is removed.
	work, _, err := c.o.Broker.Subjects(ctx, c.work, workSubject+c.job.ID+".*")
	if err != nil {
		return err
	}
	for i := range c.next {
		p := pieceID{c.job.ID, i}
		if c.pieces[i].result != 0 || work[p.subject(workSubject)] > 0 {
			continue
		}
		if err := c.readResult(ctx, p.subject(resultSubject)); err != nil {
			return err
		}
		if c.pieces[i].result == 0 {
			c.o.Log.Warn("a piece of a job is lost and is stored again", slog.String("job", c.job.ID), slog.Int("piece", i))
			if err := c.store(ctx, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// follow sends the results to coordinate as they are stored, without their bodies, until ctx
// ends.
func (c *coordination) follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.followOnce(ctx)
		if err != nil && ctx.Err() == nil {
			c.o.Log.Debug("results cannot be followed and are followed again", slog.String("job", c.job.ID), slog.Any("error", err))
			select {
			case <-ctx.Done():
			case <-time.After(retryPause):
			}
		}
	}
}

func (c *coordination) followOnce(ctx context.Context) error {
	var consumer jetstream.Consumer
	err := c.o.Broker.Retry(ctx, func(ctx context.Context) (err error) {
		consumer, err = c.files.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{resultSubject + c.job.ID + ".*"}, HeadersOnly: true, InactiveThreshold: time.Minute,
		})
		return err
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, messages.Stop)()
	defer messages.Stop()
	for {
		m, err := messages.Next()
		if err != nil {
			return err
		}
		p, err := pieceOf(m.Subject(), resultSubject)
		if err != nil || p.index >= len(c.pieces) {
			continue
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		select {
		case c.results <- result{p.index, meta.Sequence.Stream, m.Headers()}:
		case <-ctx.Done():
			return nil
		}
	}
}

// Reader returns a reader of the lines, which is usable until ctx ends. It can seek to the
// beginning.
func (r *Results) Reader(ctx context.Context) io.ReadSeeker {
	again := *r
	again.ctx, again.next, again.rest = ctx, 0, nil
	return &again
}

// Read reads the lines, one result in memory at a time.
func (r *Results) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.next == len(r.sequences) {
			return 0, io.EOF
		}
		var m *jetstream.RawStreamMsg
		err := r.b.patiently(r.ctx, func() error {
			return r.b.o.Broker.Retry(r.ctx, func(ctx context.Context) (err error) {
				m, err = r.b.files.GetMsg(ctx, r.sequences[r.next])
				return err
			})
		})
		if err != nil {
			return 0, err
		}
		r.rest = m.Data
		r.next++
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Seek seeks to the beginning, for which offset and whence must be 0.
func (r *Results) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return 0, errors.ErrUnsupported
	}
	r.next, r.rest = 0, nil
	return 0, nil
}
