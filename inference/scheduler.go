package inference

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/telemetry"
	"github.com/deepmed/anomaly/models"
	"golang.org/x/sync/semaphore"
)

// MaxBatchDelay is the longest delay of dynamic batching.
const MaxBatchDelay = 2 * time.Millisecond

// MaxBatchSize is the largest batch.
const MaxBatchSize = 1024

// ErrBatch is returned when a batch size or delay is out of bounds.
var ErrBatch = errors.New("unusable batch options")

// BatchOptions configure dynamic batching: images that wait for the same model run
// as one batch.
type BatchOptions struct {
	// Size is the largest batch. 0 selects it by the device and the image size: on
	// a CPU 16 images of up to 64×64 pixels, fewer of larger images, and 1 from
	// 256×256 pixels on; on a GPU 32.
	Size int
	// Delay is the longest time that an image waits for other images that are being
	// decoded for the same model, at most MaxBatchDelay. Nothing waits if no such
	// image exists, or on a CPU if Size is 0.
	Delay time.Duration
	// Observe is called with the number of images of each batch and the duration of
	// its run. It may be nil and must not block.
	Observe func(images int, took time.Duration)
}

// Scheduler divides the engine's threads between concurrent work and runs waiting
// images in batches. Decoding takes one thread, and so does a run next to other
// work; a run without other work takes all threads. A Scheduler may be used by
// several goroutines at once.
type Scheduler struct {
	threads    int64
	maxWorkers int // concurrent runs of one queue
	gpu        bool
	batch      BatchOptions
	processors *semaphore.Weighted
	inFlight   atomic.Int64 // images from their arrival to the end of their run
}

// NewScheduler returns a scheduler for the engine's threads. ErrBatch is returned,
// wrapped, if the size or the delay is out of bounds.
func NewScheduler(engine *Engine, o BatchOptions) (*Scheduler, error) {
	if o.Size < 0 || o.Size > MaxBatchSize {
		return nil, fmt.Errorf("%w: a batch of %d images, expected 0 to %d", ErrBatch, o.Size, MaxBatchSize)
	}
	if o.Delay < 0 || o.Delay > MaxBatchDelay {
		return nil, fmt.Errorf("%w: a delay of %v, expected 0 to %v", ErrBatch, o.Delay, MaxBatchDelay)
	}
	provider, _ := engine.Provider()
	threads := max(engine.Threads(), 1)
	s := &Scheduler{threads: int64(threads), maxWorkers: threads, gpu: provider == ort.CUDA, batch: o,
		processors: semaphore.NewWeighted(int64(threads))}
	if s.gpu {
		s.maxWorkers = 1 // one batch uses the whole GPU
	}
	return s, nil
}

// Default batch sizes. On two cores, compared with concurrent runs of one image by
// one thread each, batches took 0.24 to 0.28 ms an image of 32×32 pixels instead of
// 0.20 to 0.30, the same at 128×128, and no less at 256×256, where each image of a
// batch takes 13 MB of working memory.
const (
	pixelsPerBatch  = 16 * 64 * 64 // on a CPU
	maxDefaultOnCPU = 16
	defaultOnGPU    = 32
)

// size returns the largest batch of images of that size.
func (s *Scheduler) size(of models.Size) int {
	switch {
	case s.batch.Size > 0:
		return s.batch.Size
	case s.gpu:
		return defaultOnGPU
	}
	return min(max(pixelsPerBatch/of.Area(), 1), maxDefaultOnCPU)
}

// delay returns the longest time that a batch waits for reserved jobs.
func (s *Scheduler) delay() time.Duration {
	if s.gpu || s.batch.Size > 1 {
		return s.batch.Delay
	}
	return 0
}

// Work calls do when a processor is free. CPU-bound work next to the runs, such as
// reading a model, must use it. It returns do's error, or the cause of ctx if ctx
// ends first.
func (s *Scheduler) Work(ctx context.Context, do func() error) error {
	if err := s.processors.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer s.processors.Release(1)
	return do()
}

// Task is an image to judge.
type Task struct {
	// Image is the content of the image file.
	Image []byte
	// Metadata replaces the model's own metadata unless it is nil.
	Metadata *models.Metadata
	// Limits bound the cost of decoding the image.
	Limits ImageLimits
	// Overlay leaves the image out of the heatmap of Explain.
	Overlay bool
	// Decoded is called after the image is decoded and before it runs, and not at all for a
	// model of tiles, which run while the image is decoded. It may be nil.
	Decoded func()
}

// Detect is like Detector.Detect, scheduled with other work.
func (s *Scheduler) Detect(ctx context.Context, d *Detector, t Task) (Verdict, error) {
	f, err := s.open(ctx, d, t)
	if err != nil {
		return Verdict{}, err
	}
	return eachFrame(f, func(i int) (Verdict, error) { return s.detectFrame(ctx, d, t, f, i) })
}

// open returns the images in the task's file.
func (s *Scheduler) open(ctx context.Context, d *Detector, t Task) (f *imagefile.Frames, err error) {
	if format, _ := imagefile.Sniff(t.Image[:min(len(t.Image), imagefile.SniffBytes)]); format != imagefile.DICOM {
		return d.Open(t.Image, t.Limits) // which costs nothing
	}
	err = s.Work(ctx, func() error {
		f, err = d.Open(t.Image, t.Limits)
		return err
	})
	return f, err
}

// detectFrame judges image i of the task's file.
func (s *Scheduler) detectFrame(ctx context.Context, d *Detector, t Task, f *imagefile.Frames, i int) (Verdict, error) {
	if d.Tiled() {
		return s.detectTiles(ctx, d, t, f, i)
	}
	if i > 0 {
		t.Decoded = nil // the other frames are decoded between runs
	}
	j, err := s.judge(ctx, d, t, f.Options(i), scoreSession, func(p *imagefile.Prepared) (*job, error) {
		return &job{image: func(dst []float32) {
			imagefile.Normalize(dst, p.Pix)
			// Only the run can release the pixels: it may start after Detect returned
			// because ctx ended.
			p.Release()
		}}, nil
	})
	if err != nil {
		return Verdict{}, err
	}
	return d.judge(j, t.Metadata)
}

// Explain is like Detector.Explain, scheduled with other work.
func (s *Scheduler) Explain(ctx context.Context, d *Detector, t Task) (*Explanation, error) {
	f, err := s.open(ctx, d, t)
	if err != nil {
		return nil, err
	}
	return explainHighest(f, func(i int) (Verdict, error) { return s.detectFrame(ctx, d, t, f, i) },
		func(i int) (*Explanation, error) { return s.explainFrame(ctx, d, t, f, i) })
}

// explainFrame explains image i of the task's file.
func (s *Scheduler) explainFrame(ctx context.Context, d *Detector, t Task, f *imagefile.Frames, i int) (x *Explanation, err error) {
	if d.Tiled() {
		err = s.tiles(ctx, mapSession, func(next turn) (err error) {
			x, err = d.explainTiles(ctx, f, i, t.Metadata, next, t.Overlay)
			return err
		})
		return x, err
	}
	if f.Len() > 1 {
		t.Decoded = nil // it was called before
	}
	var p *imagefile.Prepared
	j, err := s.judge(ctx, d, t, f.Options(i), mapSession, func(prepared *imagefile.Prepared) (*job, error) {
		p = prepared
		return d.mapJob(p.Pix)
	})
	if err != nil {
		// The run may still read the pixels, so they are left to the garbage collector.
		return nil, err
	}
	defer p.Release()
	err = s.Work(ctx, func() (err error) {
		x, err = d.explain(j, p, t.Metadata, t.Overlay)
		return err
	})
	return x, err
}

// detectTiles judges image i of the task's file with a model of tiles.
func (s *Scheduler) detectTiles(ctx context.Context, d *Detector, t Task, f *imagefile.Frames, i int) (v Verdict, err error) {
	err = s.tiles(ctx, scoreSession, func(next turn) (err error) {
		v, err = d.detectTiles(ctx, f, i, t.Metadata, next)
		return err
	})
	return v, err
}

// tiles calls do, which must call its argument before each batch. The tiles of an image are
// batches already, so they do not wait for the tiles of other images. Between two batches, other
// work that waits for processors runs: an image can have thousands of tiles.
func (s *Scheduler) tiles(ctx context.Context, k sessionKind, do func(turn) error) error {
	s.inFlight.Add(1)
	defer s.inFlight.Add(-1)
	held := int64(0)
	release := func() {
		s.processors.Release(held)
		held = 0
	}
	defer func() { release() }()
	return do(func() (sessionKind, error) {
		release()
		kind, threads := s.share(k)
		if err := s.processors.Acquire(ctx, threads); err != nil {
			return kind, context.Cause(ctx)
		}
		held = threads
		return kind, nil
	})
}

// judge decodes the task's image with options and runs the job that newJob returns for it.
// The job is done if the error is nil.
func (s *Scheduler) judge(ctx context.Context, d *Detector, t Task, o imagefile.Options, k sessionKind, newJob func(*imagefile.Prepared) (*job, error)) (*job, error) {
	left := s.enter()
	defer left()
	q := &d.queues[k]
	q.reserve()
	reserved := true
	defer func() {
		if reserved { // an error or a panic
			q.cancel()
		}
	}()
	var p *imagefile.Prepared
	err := s.Work(ctx, func() (err error) {
		p, err = imagefile.PreparePooled(t.Image, d.Size(), d.mapOptions(k, o, t.Overlay))
		return err
	})
	if err != nil {
		return nil, err
	}
	if t.Decoded != nil {
		t.Decoded()
	}
	j, err := newJob(p)
	if err != nil {
		return nil, err
	}
	j.ctx, j.left, j.shallow = ctx, left, p.Shallow
	reserved = false
	return j, s.wait(d, k, []*job{j})
}

// enter counts an image in flight until the returned function is called, once or more.
func (s *Scheduler) enter() (left func()) {
	s.inFlight.Add(1)
	return sync.OnceFunc(func() { s.inFlight.Add(-1) })
}

// Infer computes prepared images, of the values of the network's input. It returns the anomaly
// score and the mean squared error of every image. Unless reconstructions is nil, it
// must be as long as images and receives the reconstructions.
func (s *Scheduler) Infer(ctx context.Context, d *Detector, images, reconstructions []float32) (scores, mses []float32, err error) {
	n := d.floats()
	if len(images)%n != 0 || (reconstructions != nil && len(reconstructions) != len(images)) {
		return nil, nil, fmt.Errorf("inference: %d values for images of %v pixels", len(images), d.Size())
	}
	jobs := make([]*job, len(images)/n)
	k := scoreSession
	if reconstructions != nil {
		k = reconstructionSession
	}
	for i := range jobs {
		from, to := i*n, (i+1)*n
		jobs[i] = &job{ctx: ctx, left: s.enter(), image: func(dst []float32) { copy(dst, images[from:to]) }}
		defer jobs[i].left()
		if reconstructions != nil {
			jobs[i].reconstruction = reconstructions[from:to]
		}
		d.queues[k].reserve()
	}
	if err := s.wait(d, k, jobs); err != nil {
		return nil, nil, err
	}
	for _, j := range jobs {
		scores, mses = append(scores, j.score), append(mses, j.mse)
	}
	return scores, mses, nil
}

// wait adds reserved jobs to the queue of a session and waits until all are done. It
// returns the first error, or the cause of a job's context if that ends first.
func (s *Scheduler) wait(d *Detector, k sessionKind, jobs []*job) error {
	for _, j := range jobs {
		j.done = make(chan struct{})
	}
	for range d.queues[k].add(jobs, s.maxWorkers) {
		go s.work(d, k)
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

// share returns the session and the number of threads for the next batch of a queue.
func (s *Scheduler) share(k sessionKind) (sessionKind, int64) {
	switch {
	case s.gpu, s.threads == 1, k == mapSession:
		return k, 1
	case k == reconstructionSession, s.inFlight.Load() <= 1:
		return k, s.threads
	}
	return singleThreadSession, 1
}

// work runs the jobs of a queue in batches until the queue is empty.
func (s *Scheduler) work(d *Detector, k sessionKind) {
	q := &d.queues[k]
	size := s.size(d.Size())
	for {
		q.collect(size, s.delay())
		// A worker without jobs must not wait for processors that others need.
		if q.stopIfEmpty() {
			return
		}
		k, threads := s.share(k)
		// Every holder releases its processors, so this does not block forever.
		_ = s.processors.Acquire(context.Background(), threads)
		jobs := q.next(size, s.maxWorkers)
		if jobs == nil {
			s.processors.Release(threads)
			return
		}
		began := time.Now()
		ctx, done := batchContext(jobs)
		// A batch of several requests is in the trace of the first.
		_, span := telemetry.Begin(telemetry.With(ctx, jobs[0].ctx), "onnxruntime run")
		span.Int("batch.images", len(jobs))
		span.Int("threads", int(threads))
		err := d.run(ctx, k, jobs)
		span.End(err)
		done()
		// Before the next batch chooses its threads, which the callers may be too late for.
		for _, j := range jobs {
			j.left()
		}
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
