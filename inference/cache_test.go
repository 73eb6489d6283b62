package inference

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// loader returns a function that reads a model file and counts its calls in loads.
func loader(t testing.TB, file []byte, loads *atomic.Int64) func() (*Detector, error) {
	return func() (*Detector, error) {
		loads.Add(1)
		m, err := models.Read(file, models.DefaultLimits())
		if err != nil {
			return nil, err
		}
		return NewDetector(orttest.Open(t), m, 0)
	}
}

// bytesOf returns the size of a model that is loaded and has not run.
func bytesOf(t testing.TB, file []byte) int64 {
	t.Helper()
	d, err := loader(t, file, new(atomic.Int64))()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return d.Bytes()
}

func TestCache_EvictsByBytesAndNeverClosesAModelInUse(t *testing.T) {
	files := modelFiles(t, 3)
	var room int64
	for _, f := range files {
		room = max(room, bytesOf(t, f))
	}
	c := NewCache(2*room + room/2)
	defer c.Close()
	var loads atomic.Int64
	get := func(i int) (*Detector, func()) {
		t.Helper()
		d, release, err := c.Get(t.Context(), models.Identity(files[i]), loader(t, files[i], &loads))
		if err != nil {
			t.Fatal(err)
		}
		return d, release
	}
	first, releaseFirst := get(0)
	if again, release := get(0); again != first || loads.Load() != 1 {
		t.Error("the model was loaded twice")
	} else {
		release()
	}
	_, release := get(1)
	release()
	_, release = get(2) // evicts the first, the least recently used
	release()
	if s := c.Stats(); s.Models != 2 || s.Bytes > 2*room || s.Bytes < room || s.Leaving != 1 || s.Hits != 1 || s.Misses != 3 || s.Evictions != 1 {
		t.Errorf("%+v, a model takes up to %d bytes", s, room)
	}
	if _, err := first.Detect(t.Context(), tile(t), nil, imagefile.DefaultLimits()); err != nil {
		t.Errorf("a model in use was closed: %v", err)
	}
	releaseFirst()
	releaseFirst() // the second call has no effect
	if s := c.Stats(); s.Leaving != 0 {
		t.Errorf("%+v", s)
	}
	if _, err := first.Detect(t.Context(), tile(t), nil, imagefile.DefaultLimits()); !errors.Is(err, ErrClosed) {
		t.Errorf("an evicted model is still open: %v", err)
	}
	if d, release := get(0); d == first {
		t.Error("the cache returned a closed model")
	} else {
		release()
	}
}

func TestCache_CountsSessionsCreatedDuringUse(t *testing.T) {
	file := modelFiles(t, 1)[0]
	c := NewCache(1) // below the size of any model: the last one stays
	defer c.Close()
	d, release, err := c.Get(t.Context(), "a", loader(t, file, new(atomic.Int64)))
	if err != nil {
		t.Fatal(err)
	}
	before := c.Stats().Bytes
	if _, err := d.Reconstruct(t.Context(), make([]byte, d.floats())); err != nil {
		t.Fatal(err)
	}
	release()
	if s := c.Stats(); s.Models != 1 || s.Bytes <= before || s.Bytes != d.Bytes() {
		t.Errorf("%+v, before %d, the detector has %d bytes", s, before, d.Bytes())
	}
}

func TestCache_KeepsNothingOfAFailedLoad(t *testing.T) {
	c := NewCache(1 << 20)
	defer c.Close()
	var loads atomic.Int64
	for range 3 {
		if _, _, err := c.Get(t.Context(), "prose", loader(t, []byte("prose"), &loads)); !errors.Is(err, models.ErrFormat) {
			t.Errorf("%v", err)
		}
	}
	if s := c.Stats(); s.Models != 0 || s.Bytes != 0 || loads.Load() != 3 {
		t.Errorf("%+v after %d loads", s, loads.Load())
	}
	_, _, err := c.Get(t.Context(), "panic", func() (*Detector, error) { panic("at the disco") })
	if err == nil || !strings.Contains(err.Error(), "disco") {
		t.Errorf("error %v after a panic", err)
	}
}

func TestCache_LoadsOnceForConcurrentCallersAfterTheFirstIsCancelled(t *testing.T) {
	file := modelFiles(t, 1)[0]
	c := NewCache(1 << 30)
	var loads atomic.Int64
	begun, goOn := make(chan struct{}), make(chan struct{})
	slow := func() (*Detector, error) {
		close(begun) // panics on a second call
		<-goOn
		return loader(t, file, &loads)()
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("cause")
	first := make(chan error, 1)
	go func() {
		_, _, err := c.Get(ctx, "a", slow)
		first <- err
	}()
	<-begun
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			_, release, err := c.Get(t.Context(), "a", slow)
			if err != nil {
				t.Error(err)
				return
			}
			release()
		})
	}
	cancel(cause)
	if err := <-first; !errors.Is(err, cause) {
		t.Errorf("the cancelled caller got %v", err)
	}
	close(goOn)
	group.Wait()
	if loads.Load() != 1 {
		t.Errorf("%d loads", loads.Load())
	}
	c.Close()
	if _, _, err := c.Get(t.Context(), "a", slow); !errors.Is(err, ErrClosed) {
		t.Errorf("error %v of a closed cache", err)
	}
}

func TestCache_ServesConcurrentCallersThatEvictEachOther(t *testing.T) {
	files := modelFiles(t, 3)
	c := NewCache(1) // every load evicts the other models
	defer c.Close()
	image := tile(t)
	var loads atomic.Int64
	var group sync.WaitGroup
	for i := range 6 {
		group.Go(func() {
			for j := range 4 {
				file := files[(i+j)%3]
				d, release, err := c.Get(t.Context(), models.Identity(file), loader(t, file, &loads))
				if err != nil {
					t.Error(err)
					return
				}
				if v, err := d.Detect(t.Context(), image, nil, imagefile.DefaultLimits()); err != nil || v.ModelSHA256 != models.Identity(file) {
					t.Errorf("%v from %s", err, v.ModelSHA256)
				}
				release()
			}
		})
	}
	group.Wait()
	if s := c.Stats(); s.Models != 1 || s.Leaving != 0 {
		t.Errorf("%+v", s)
	}
}

// The cache's limit depends on it.
func TestDetectorBytes_IsTheMemoryThatADetectorTakes(t *testing.T) {
	const count = 12
	m := &models.Model{Architecture: models.DefaultArchitecture(), ImageSize: 64}
	for _, p := range m.Architecture.Parameters() {
		m.Weights = append(m.Weights, models.Tensor{Name: p.Name, Shape: p.Shape, Data: make([]float32, p.Size())})
	}
	run := func() *Detector {
		d, err := NewDetector(orttest.Open(t), m, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Close)
		for _, k := range []sessionKind{scoreSession, singleThreadSession} {
			j := job{image: func([]float32) {}}
			if err := d.run(t.Context(), k, []*job{&j}); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	run() // allocates the memory shared by all models
	before := resident(t)
	counted := int64(0)
	for range count {
		counted += run().Bytes()
	}
	counted -= (count - 1) * 4 * int64(parameters(m)) // the detectors share the weights here
	took := resident(t) - before
	t.Logf("%d models: %d KiB counted, %d KiB measured", count, counted>>10, took>>10)
	if took > counted+counted/10 || took < counted/3 {
		t.Errorf("%d models take %d bytes, Bytes adds up to %d", count, took, counted)
	}
}

func parameters(m *models.Model) (n int) {
	for _, w := range m.Weights {
		n += len(w.Data)
	}
	return n
}

// resident returns the resident memory of the process, in bytes, after Go has released
// its free memory.
func resident(t testing.TB) int64 {
	t.Helper()
	debug.FreeOSMemory()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	_, after, _ := strings.Cut(string(data), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
