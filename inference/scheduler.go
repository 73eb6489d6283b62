package inference

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"golang.org/x/sync/semaphore"
)

// MaxBatchDelay is the longest that an image may be held back for others.
const MaxBatchDelay = 2 * time.Millisecond

// MaxBatchSize is the largest batch.
const MaxBatchSize = 1024

// ErrBatch is returned when batches cannot be made as asked for.
var ErrBatch = errors.New("unusable batch options")

// BatchOptions say how images that wait for one model run together.
type BatchOptions struct {
	// Size is the most images in a batch; 0 takes what pays: on a CPU 16 of
	// 64×64 pixels and fewer of larger ones, one at a time from 256×256 on; on
	// a GPU 32.
	Size int
	// Delay is how long an image may be held back for others that are on
	// their way to the same model, at most MaxBatchDelay. Nothing is held back
	// when nothing is on its way, nor on a CPU while Size is 0.
	Delay time.Duration
	// Observe is told the number of images in each batch and how long its run
	// took. It may be nil, and must not block.
	Observe func(images int, took time.Duration)
}

// Scheduler decides who computes when, so that a machine has no more threads at
// work than the engine has: decoding takes one, and so does a run beside others;
// a run with nothing beside it takes all. Images that wait for one model run
// together. Several goroutines may use it at once.
type Scheduler struct {
	threads    int64
	lanes      int // runs at once for one model
	gpu        bool
	batch      BatchOptions
	processors *semaphore.Weighted
	inside     atomic.Int64 // images from their coming to their verdict
}

// NewScheduler divides the engine's threads. It returns ErrBatch, wrapped, for a
// size or delay out of bounds.
func NewScheduler(engine *ort.Engine, o BatchOptions) (*Scheduler, error) {
	if o.Size < 0 || o.Size > MaxBatchSize {
		return nil, fmt.Errorf("%w: a batch of %d images, expected 0 to %d", ErrBatch, o.Size, MaxBatchSize)
	}
	if o.Delay < 0 || o.Delay > MaxBatchDelay {
		return nil, fmt.Errorf("%w: a delay of %v, expected 0 to %v", ErrBatch, o.Delay, MaxBatchDelay)
	}
	provider, _ := engine.Provider()
	threads := max(engine.Threads(), 1)
	s := &Scheduler{threads: int64(threads), lanes: threads, gpu: provider == ort.CUDA, batch: o,
		processors: semaphore.NewWeighted(int64(threads))}
	if s.gpu {
		s.lanes = 1 // a GPU computes a batch at once, not batches side by side
	}
	return s, nil
}

// What a batch holds when nobody says. On two cores, side by side with runs of
// one image by one thread each, batches took 0.24 to 0.28 ms an image of 32 px
// instead of 0.20 to 0.30, the same at 128 px, and no less at 256 px, where each
// image of a batch takes 13 MB of working memory.
const (
	batchPixels  = 16 * 64 * 64
	mostOnCPU    = 16
	mostOnGPU    = 32
	minBatchSize = 1
)

// size is the most images of that side in a batch.
func (s *Scheduler) size(side int) int {
	switch {
	case s.batch.Size > 0:
		return s.batch.Size
	case s.gpu:
		return mostOnGPU
	}
	return min(max(batchPixels/(side*side), minBatchSize), mostOnCPU)
}

// delay is how long a batch waits for images that are on their way.
func (s *Scheduler) delay() time.Duration {
	if s.gpu || s.batch.Size > 1 {
		return s.batch.Delay
	}
	return 0
}

// Work does what keeps a processor busy, such as reading a model, when one is
// free. It returns the context's cause when that ends first.
func (s *Scheduler) Work(ctx context.Context, do func() error) error {
	if err := s.processors.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer s.processors.Release(1)
	return do()
}

// Task is an image to be judged.
type Task struct {
	Image []byte // the file
	// Metadata replaces the model's own; nil for that.
	Metadata *models.Metadata
	Limits   imagefile.Limits
	// Decoded is called between the image's decoding and its run; may be nil.
	Decoded func()
}

// Detect is Detector.Detect in its turn.
func (s *Scheduler) Detect(ctx context.Context, d *Detector, t Task) (Verdict, error) {
	s.inside.Add(1)
	defer s.inside.Add(-1)
	d.errors.expect()
	expected := true
	defer func() {
		if expected { // whatever went wrong
			d.errors.despair()
		}
	}()
	var pixels []byte
	err := s.Work(ctx, func() (err error) {
		pixels, err = imagefile.PreparePooled(t.Image, d.Side(), t.Limits)
		return err
	})
	if err != nil {
		return Verdict{}, err
	}
	if t.Decoded != nil {
		t.Decoded()
	}
	expected = false
	j := &job{ctx: ctx, image: func(dst []float32) {
		imagefile.Normalize(dst, pixels)
		imagefile.Release(pixels) // not sooner: the run may begin after its caller has left
	}}
	if err := s.wait(d, &d.errors, alone, []*job{j}); err != nil {
		return Verdict{}, err
	}
	return d.judge(j, t.Metadata)
}

// Infer computes images that are prepared already, in their turn: n·3·side·side
// values, and gives of each what the model decides by, and the mean squared error. Where rebuilt isn't nil, it is as long as
// images and takes the reconstructions.
func (s *Scheduler) Infer(ctx context.Context, d *Detector, images, rebuilt []float32) (figures, mses []float32, err error) {
	n := d.floats()
	if len(images)%n != 0 || (rebuilt != nil && len(rebuilt) != len(images)) {
		return nil, nil, fmt.Errorf("inference: %d values for images of %d×%d pixels", len(images), d.Side(), d.Side())
	}
	jobs := make([]*job, len(images)/n)
	q, k := &d.errors, alone
	if rebuilt != nil {
		q, k = &d.rebuilds, rebuilding
	}
	for i := range jobs {
		from, to := i*n, (i+1)*n
		jobs[i] = &job{ctx: ctx, image: func(dst []float32) { copy(dst, images[from:to]) }}
		if rebuilt != nil {
			jobs[i].rebuilt = rebuilt[from:to]
		}
		s.inside.Add(1)
		q.expect()
	}
	defer s.inside.Add(-int64(len(jobs)))
	if err := s.wait(d, q, k, jobs); err != nil {
		return nil, nil, err
	}
	for _, j := range jobs {
		figures, mses = append(figures, j.figure), append(mses, j.mse)
	}
	return figures, mses, nil
}

// wait puts jobs that were expected into a queue and waits until they are done.
// It gives the first error.
func (s *Scheduler) wait(d *Detector, q *queue, k kind, jobs []*job) error {
	for _, j := range jobs {
		j.done = make(chan struct{})
	}
	for range q.add(jobs, s.lanes) {
		go s.serve(d, q, k)
	}
	var first error
	for _, j := range jobs {
		select {
		case <-j.done:
			if first == nil {
				first = j.err
			}
		case <-j.ctx.Done():
			return context.Cause(j.ctx)
		}
	}
	return first
}

// share says by which session, and on how many threads, the next batch of a
// queue runs.
func (s *Scheduler) share(k kind) (kind, int64) {
	switch {
	case s.gpu, s.threads == 1:
		return k, 1
	case k == rebuilding, s.inside.Load() <= 1:
		return k, s.threads
	}
	return beside, 1
}

// serve runs what waits in a detector's queue until nothing does.
func (s *Scheduler) serve(d *Detector, q *queue, k kind) {
	size := s.size(d.Side())
	for {
		q.gather(size, s.delay())
		// A server that has nothing to do must not stand in the way of others.
		if q.retire() {
			return
		}
		k, threads := s.share(k)
		// Whoever holds processors gives them back, so this ends.
		_ = s.processors.Acquire(context.Background(), threads)
		jobs := q.next(size, s.lanes)
		if jobs == nil {
			s.processors.Release(threads)
			return
		}
		began := time.Now()
		ctx, done := together(jobs)
		err := d.run(ctx, k, jobs)
		done()
		s.processors.Release(threads)
		if s.batch.Observe != nil {
			s.batch.Observe(len(jobs), time.Since(began))
		}
		q.finished()
		for _, j := range jobs {
			j.err = err
			close(j.done)
		}
	}
}
