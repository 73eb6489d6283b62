package inference

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// noisyImages returns n different images for a detector.
func noisyImages(d *Detector, n int) []float32 {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]float32, n*d.floats())
	for i := range out {
		out[i] = r.Float32()
	}
	return out
}

func scheduler(t testing.TB, threads int, o BatchOptions) *Scheduler {
	t.Helper()
	s, err := NewScheduler(orttest.OpenThreads(t, threads), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// gaborDetector returns a detector for a model with models.MeasureBandMahalanobis and
// random reference statistics.
func gaborDetector(t testing.TB) *Detector {
	t.Helper()
	m := *goldenDetector(t).Model()
	r := rand.New(rand.NewPCG(3, 4))
	for _, p := range models.GaborParameters(m.ImageSize) {
		size := 1
		for _, n := range p.Shape {
			size *= n
		}
		data := make([]float32, size)
		for i := range data {
			data[i] = r.Float32()/2 + 0.1
		}
		if strings.HasSuffix(p.Name, ".slope") { // scores near 1, where the softplus is not linear
			data[0] *= 0.1
		}
		m.Reference = append(m.Reference, models.Tensor{Name: p.Name, Shape: p.Shape, Data: data})
	}
	m.Metadata.Decision = &models.Decision{Measure: models.MeasureBandMahalanobis, Threshold: 1}
	d, err := NewDetector(orttest.Open(t), &m, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func TestInfer_ReturnsTheSameBitsInBatchesOfAnySize(t *testing.T) {
	for measure, d := range map[string]*Detector{models.MeasureMSE: goldenDetector(t), models.MeasureBandMahalanobis: gaborDetector(t)} {
		t.Run(measure, func(t *testing.T) { checkBatches(t, d) })
	}
}

func checkBatches(t *testing.T, d *Detector) {
	const most = 16
	images := noisyImages(d, most)
	one := make([]float32, most)
	for i := range one {
		scores, _, err := scheduler(t, 2, BatchOptions{}).Infer(t.Context(), d, images[i*d.floats():(i+1)*d.floats()], nil)
		if err != nil {
			t.Fatal(err)
		}
		one[i] = scores[0]
	}
	reconstructions := make([]float32, len(images))
	if _, _, err := scheduler(t, 2, BatchOptions{Size: 1}).Infer(t.Context(), d, images, reconstructions); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 2, 3, 8, most} {
		for _, threads := range []int{1, 2} {
			s := scheduler(t, threads, BatchOptions{Size: size})
			scores, _, err := s.Infer(t.Context(), d, images, nil)
			if err != nil {
				t.Fatal(err)
			}
			again := make([]float32, len(images))
			full, _, err := s.Infer(t.Context(), d, images, again)
			if err != nil {
				t.Fatal(err)
			}
			for i := range one {
				if scores[i] != one[i] || full[i] != one[i] {
					t.Errorf("batch %d, %d threads, image %d: score %v, with its reconstruction %v, alone %v", size, threads, i, scores[i], full[i], one[i])
				}
			}
			for i := range again {
				if again[i] != reconstructions[i] {
					t.Fatalf("batch %d, %d threads: value %d of the reconstruction is %v, alone %v", size, threads, i, again[i], reconstructions[i])
				}
			}
		}
	}
}

func TestScheduler_RunsWaitingImagesAsOneBatch(t *testing.T) {
	var mu sync.Mutex
	var batches []int
	s := scheduler(t, 1, BatchOptions{Size: 4, Observe: func(n int, _ time.Duration) {
		mu.Lock()
		batches = append(batches, n)
		mu.Unlock()
	}})
	d := goldenDetector(t)
	if err := s.processors.Acquire(t.Context(), 1); err != nil { // all images must wait
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, _, err := s.Infer(t.Context(), d, noisyImages(d, 9), nil)
		done <- err
	}()
	for waiting := 0; waiting < 9; {
		d.queues[scoreSession].mu.Lock()
		waiting = len(d.queues[scoreSession].waiting)
		d.queues[scoreSession].mu.Unlock()
	}
	s.processors.Release(1)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(batches) != 3 || batches[0] != 4 || batches[1] != 4 || batches[2] != 1 {
		t.Errorf("nine images ran in batches of %v", batches)
	}
}

func TestScheduler_CountsImagesUntilTheEndOfTheirRun(t *testing.T) {
	// The last of several images has all threads for its run. Its caller's goroutine may not
	// have heard of the run before when they are chosen.
	var s *Scheduler
	var left []int64
	s = scheduler(t, 1, BatchOptions{Size: 1, Observe: func(int, time.Duration) { left = append(left, s.inFlight.Load()) }})
	d := goldenDetector(t)
	if _, _, err := s.Infer(t.Context(), d, noisyImages(d, 3), nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(left, []int64{2, 1, 0}) {
		t.Errorf("%v images were in flight after the runs of three", left)
	}
}

func TestQueueNext_LeavesJobsToFreeWorkers(t *testing.T) {
	for _, c := range []struct {
		waiting, size, workers, running int
		want                            int
	}{
		{1, 8, 2, 0, 1}, {4, 8, 2, 0, 2}, {5, 8, 2, 0, 3}, {4, 8, 2, 1, 4}, {4, 3, 2, 1, 3}, {16, 32, 4, 2, 8}, {3, 1, 1, 0, 1}, {2, 8, 2, 2, 2},
	} {
		q := queue{running: c.running, workers: 1}
		for range c.waiting {
			q.waiting = append(q.waiting, &job{ctx: t.Context(), done: make(chan struct{})})
		}
		if got := len(q.next(c.size, c.workers)); got != c.want {
			t.Errorf("%+v: a batch of %d", c, got)
		}
	}
}

func TestQueueCollect_WaitsForReservedJobsOnly(t *testing.T) {
	const long = time.Hour // collect must return before
	present := func(n int) []*job {
		out := make([]*job, n)
		for i := range out {
			out[i] = &job{ctx: t.Context()}
		}
		return out
	}
	for name, q := range map[string]*queue{
		"nothing reserved":   {waiting: present(1)},
		"enough for a batch": {waiting: present(4), reserved: 3},
		"nothing waiting":    {reserved: 3},
	} {
		q.collect(4, long)
		if q.changed != nil {
			t.Errorf("%s: collect waited", name)
		}
	}
	q := &queue{waiting: present(1), reserved: 2}
	ended := make(chan struct{})
	go func() {
		q.collect(4, long)
		close(ended)
	}()
	q.cancel()
	select {
	case <-ended:
		t.Error("collect did not wait for the reserved job")
	case <-time.After(20 * time.Millisecond):
	}
	q.add(present(1), 1)
	<-ended
	late := &queue{waiting: present(1), reserved: 1}
	late.collect(4, time.Millisecond) // returns after the delay
}

func TestScheduler_ServesOthersAfterACallerIsCancelled(t *testing.T) {
	s := scheduler(t, 1, BatchOptions{Size: 8})
	d := goldenDetector(t)
	if err := s.processors.Acquire(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("cause")
	gone, stays := make(chan error), make(chan error)
	go func() {
		_, _, err := s.Infer(ctx, d, noisyImages(d, 2), nil)
		gone <- err
	}()
	go func() {
		_, _, err := s.Infer(t.Context(), d, noisyImages(d, 1), nil)
		stays <- err
	}()
	cancel(cause)
	if err := <-gone; !errors.Is(err, cause) {
		t.Errorf("the cancelled caller got %v", err)
	}
	s.processors.Release(1)
	if err := <-stays; err != nil {
		t.Errorf("the other caller got %v", err)
	}
	if n := s.inFlight.Load(); n != 0 {
		t.Errorf("%d images are still in flight", n)
	}
}

func TestBatchContext_EndsAfterTheContextsOfAllJobs(t *testing.T) {
	first, cancelFirst := context.WithCancel(t.Context())
	second, cancelSecond := context.WithCancel(t.Context())
	ctx, done := batchContext([]*job{{ctx: first}, {ctx: second}})
	defer done()
	cancelFirst()
	if ctx.Err() != nil {
		t.Error("it ended with the first job's context")
	}
	cancelSecond()
	<-ctx.Done()
}

func TestSchedulerDetect_ReturnsTheVerdictOfTheDetector(t *testing.T) {
	d, image := goldenDetector(t), tile(t)
	want, err := d.Detect(t.Context(), image, nil, imagefile.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []BatchOptions{{}, {Size: 1}, {Size: 4, Delay: MaxBatchDelay}} {
		for _, threads := range []int{1, 3} {
			s := scheduler(t, threads, o)
			var group sync.WaitGroup
			for range 12 {
				group.Go(func() {
					got, err := s.Detect(t.Context(), d, Task{Image: image, Limits: imagefile.DefaultLimits()})
					if err != nil || got.ReconstructionError != want.ReconstructionError || got.IsAnomaly != want.IsAnomaly {
						t.Errorf("%+v, %d threads: %+v, %v, expected %+v", o, threads, got, err, want)
					}
				})
			}
			if _, err := s.Detect(t.Context(), d, Task{Image: []byte("prose"), Limits: imagefile.DefaultLimits()}); !errors.Is(err, imagefile.ErrImage) {
				t.Errorf("error %v for text", err)
			}
			group.Wait()
			d.queues[scoreSession].mu.Lock()
			reserved := d.queues[scoreSession].reserved
			d.queues[scoreSession].mu.Unlock()
			if inFlight := s.inFlight.Load(); inFlight != 0 || reserved != 0 {
				t.Errorf("%+v: %d images are still in flight, %d reserved", o, inFlight, reserved)
			}
			// A worker may hold a processor for a moment until it finds its queue empty.
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := s.processors.Acquire(ctx, s.threads); err != nil {
				t.Errorf("%+v: processors are still held", o)
			} else {
				// Such a worker may serve the next scheduler's images and must not block.
				s.processors.Release(s.threads)
			}
			cancel()
		}
	}
}

func TestNewScheduler_ChecksTheBatchOptions(t *testing.T) {
	e := orttest.Open(t)
	for _, o := range []BatchOptions{{Size: -1}, {Size: MaxBatchSize + 1}, {Delay: -1}, {Delay: MaxBatchDelay + 1}} {
		if _, err := NewScheduler(e, o); !errors.Is(err, ErrBatch) {
			t.Errorf("%+v: error %v", o, err)
		}
	}
	s := scheduler(t, 2, BatchOptions{Delay: MaxBatchDelay})
	for side, want := range map[int]int{16: 16, 32: 16, 64: 16, 128: 4, 256: 1, 384: 1, 1024: 1} {
		if got := s.size(models.Square(side)); got != want || s.delay() != 0 {
			t.Errorf("%d px: a batch of %d after %v, expected %d without delay", side, got, s.delay(), want)
		}
	}
}
