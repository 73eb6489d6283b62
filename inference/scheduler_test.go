package inference

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// noisyImages is n different images for a detector.
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

// judgingDetector is a detector of a model that decides by how far an image is
// from normal ones, which are drawn at random.
func judgingDetector(t testing.TB) *Detector {
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
		if strings.HasSuffix(p.Name, ".slope") { // for scores about 1, which are not just a distance
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

func TestBatchesOfAnySizeGiveTheSameBits(t *testing.T) {
	for measure, d := range map[string]*Detector{models.MeasureMSE: goldenDetector(t), models.MeasureBandMahalanobis: judgingDetector(t)} {
		t.Run(measure, func(t *testing.T) { batchesGiveTheSameBits(t, d) })
	}
}

func batchesGiveTheSameBits(t *testing.T, d *Detector) {
	const most = 16
	images := noisyImages(d, most)
	one := make([]float32, most)
	for i := range one {
		errs, _, err := scheduler(t, 2, BatchOptions{}).Infer(t.Context(), d, images[i*d.floats():(i+1)*d.floats()], nil)
		if err != nil {
			t.Fatal(err)
		}
		one[i] = errs[0]
	}
	rebuilt := make([]float32, len(images))
	if _, _, err := scheduler(t, 2, BatchOptions{Size: 1}).Infer(t.Context(), d, images, rebuilt); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 2, 3, 8, most} {
		for _, threads := range []int{1, 2} {
			s := scheduler(t, threads, BatchOptions{Size: size})
			errs, _, err := s.Infer(t.Context(), d, images, nil)
			if err != nil {
				t.Fatal(err)
			}
			again := make([]float32, len(images))
			full, _, err := s.Infer(t.Context(), d, images, again)
			if err != nil {
				t.Fatal(err)
			}
			for i := range one {
				if errs[i] != one[i] || full[i] != one[i] {
					t.Errorf("batch %d, %d threads, image %d: %v, with its reconstruction %v, alone %v", size, threads, i, errs[i], full[i], one[i])
				}
			}
			for i := range again {
				if again[i] != rebuilt[i] {
					t.Fatalf("batch %d, %d threads: value %d is rebuilt as %v, alone as %v", size, threads, i, again[i], rebuilt[i])
				}
			}
		}
	}
}

func TestImagesThatWaitTogetherRunTogether(t *testing.T) {
	var mu sync.Mutex
	var batches []int
	s := scheduler(t, 1, BatchOptions{Size: 4, Observe: func(n int, _ time.Duration) {
		mu.Lock()
		batches = append(batches, n)
		mu.Unlock()
	}})
	d := goldenDetector(t)
	if err := s.processors.Acquire(t.Context(), 1); err != nil { // so that all wait
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, _, err := s.Infer(t.Context(), d, noisyImages(d, 9), nil)
		done <- err
	}()
	for waiting := 0; waiting < 9; {
		d.errors.mu.Lock()
		waiting = len(d.errors.waiting)
		d.errors.mu.Unlock()
	}
	s.processors.Release(1)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(batches) != 3 || batches[0] != 4 || batches[1] != 4 || batches[2] != 1 {
		t.Errorf("nine images ran as %v", batches)
	}
}

func TestWaitingImagesAreSharedAmongFreeLanes(t *testing.T) {
	for _, c := range []struct {
		waiting, size, lanes, running int
		want                          int
	}{
		{1, 8, 2, 0, 1}, {4, 8, 2, 0, 2}, {5, 8, 2, 0, 3}, {4, 8, 2, 1, 4}, {4, 3, 2, 1, 3}, {16, 32, 4, 2, 8}, {3, 1, 1, 0, 1}, {2, 8, 2, 2, 2},
	} {
		q := queue{running: c.running, servers: 1}
		for range c.waiting {
			q.waiting = append(q.waiting, &job{ctx: t.Context(), done: make(chan struct{})})
		}
		if got := len(q.next(c.size, c.lanes)); got != c.want {
			t.Errorf("%+v: a batch of %d", c, got)
		}
	}
}

func TestBatchWaitsOnlyForWhatIsOnItsWay(t *testing.T) {
	const long = time.Hour // gather must end by itself
	present := func(n int) []*job {
		out := make([]*job, n)
		for i := range out {
			out[i] = &job{ctx: t.Context()}
		}
		return out
	}
	for name, q := range map[string]*queue{
		"nothing on its way": {waiting: present(1)},
		"enough for a batch": {waiting: present(4), coming: 3},
		"nothing waiting":    {coming: 3},
	} {
		q.gather(4, long)
		if q.changed != nil {
			t.Errorf("%s: it looked for more", name)
		}
	}
	q := &queue{waiting: present(1), coming: 2}
	ended := make(chan struct{})
	go func() {
		q.gather(4, long)
		close(ended)
	}()
	q.despair()
	select {
	case <-ended:
		t.Error("it did not wait for the one that comes")
	case <-time.After(20 * time.Millisecond):
	}
	q.add(present(1), 1)
	<-ended
	late := &queue{waiting: present(1), coming: 1}
	late.gather(4, time.Millisecond) // ends by the delay
}

func TestCallerWhoLeavesTheQueueHoldsNobodyUp(t *testing.T) {
	s := scheduler(t, 1, BatchOptions{Size: 8})
	d := goldenDetector(t)
	if err := s.processors.Acquire(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("left")
	gone, stays := make(chan error), make(chan error)
	go func() {
		_, _, err := s.Infer(ctx, d, noisyImages(d, 2), nil)
		gone <- err
	}()
	go func() {
		_, _, err := s.Infer(t.Context(), d, noisyImages(d, 1), nil)
		stays <- err
	}()
	cancel(left)
	if err := <-gone; !errors.Is(err, left) {
		t.Errorf("the one that left got %v", err)
	}
	s.processors.Release(1)
	if err := <-stays; err != nil {
		t.Errorf("the other got %v", err)
	}
	if n := s.inside.Load(); n != 0 {
		t.Errorf("%d images are inside still", n)
	}
}

func TestBatchRunsUntilAllOfItsCallersLeft(t *testing.T) {
	first, leaveFirst := context.WithCancel(t.Context())
	second, leaveSecond := context.WithCancel(t.Context())
	ctx, done := together([]*job{{ctx: first}, {ctx: second}})
	defer done()
	leaveFirst()
	if ctx.Err() != nil {
		t.Error("it ended with the first")
	}
	leaveSecond()
	<-ctx.Done()
}

func TestSchedulerJudgesAsTheDetectorDoes(t *testing.T) {
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
				t.Errorf("prose gives %v", err)
			}
			group.Wait()
			d.errors.mu.Lock()
			coming := d.errors.coming
			d.errors.mu.Unlock()
			if inside := s.inside.Load(); inside != 0 || coming != 0 {
				t.Errorf("%+v: %d images are inside still, %d are expected", o, inside, coming)
			}
			// A server whose images another one took may hold a processor for the
			// moment in which it sees that.
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := s.processors.Acquire(ctx, s.threads); err != nil {
				t.Errorf("%+v: processors are held still", o)
			} else {
				// Such a server may be left over for the next scheduler's images,
				// and must not wait for ever.
				s.processors.Release(s.threads)
			}
			cancel()
		}
	}
}

func TestBatchOptionsAreHeldToTheirBounds(t *testing.T) {
	e := orttest.Open(t)
	for _, o := range []BatchOptions{{Size: -1}, {Size: MaxBatchSize + 1}, {Delay: -1}, {Delay: MaxBatchDelay + 1}} {
		if _, err := NewScheduler(e, o); !errors.Is(err, ErrBatch) {
			t.Errorf("%+v gives %v", o, err)
		}
	}
	s := scheduler(t, 2, BatchOptions{Delay: MaxBatchDelay})
	for side, want := range map[int]int{16: 16, 32: 16, 64: 16, 128: 4, 256: 1, 384: 1, 1024: 1} {
		if got := s.size(side); got != want || s.delay() != 0 {
			t.Errorf("at %d px a batch of %d after %v, expected %d at once", side, got, s.delay(), want)
		}
	}
}
