package inference

import (
	"container/list"
	"context"
	"errors"
	"sync"

	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// Cache keeps the models of recent requests loaded, known by the SHA-256 of
// their bytes, so that a model is read and made a session once. Several
// goroutines may use it at once.
type Cache struct {
	engine *ort.Engine
	limits models.Limits
	size   int

	mu      sync.Mutex
	entries map[string]*list.Element // of *cached
	recent  *list.List               // the most recently used in front
	stats   CacheStats
}

// CacheStats are what a Cache holds, and how often it had what it was asked for.
type CacheStats struct {
	// Models are loaded, from files of so many Bytes in all.
	Models int
	Bytes  int64
	// Hits found their model loaded or on its way, Misses read it.
	Hits, Misses uint64
}

// cached is a model in the cache, or on its way into it.
type cached struct {
	key      string
	ready    chan struct{} // closed once detector and err are set
	detector *Detector
	err      error
	users    int
	evicted  bool
	bytes    int64 // of the model's file
}

// NewCache keeps at most size models, each read within the limits. It must be
// closed.
func NewCache(engine *ort.Engine, size int, limits models.Limits) *Cache {
	return &Cache{engine: engine, limits: limits, size: max(size, 1), entries: map[string]*list.Element{}, recent: list.New()}
}

// Get gives the detector of a model file's bytes, reading the model when it is
// not loaded; of several that ask for the same one at once, one reads it. The
// detector is the caller's until release is called. It returns the errors of
// models.Read and NewDetector.
func (c *Cache) Get(ctx context.Context, model []byte) (d *Detector, release func(), err error) {
	key := models.Identity(model)
	c.mu.Lock()
	var e *cached
	if el, ok := c.entries[key]; ok {
		e = el.Value.(*cached)
		e.users++
		c.stats.Hits++
		c.recent.MoveToFront(el)
		c.mu.Unlock()
	} else {
		e = &cached{key: key, ready: make(chan struct{}), users: 1, bytes: int64(len(model))}
		c.stats.Misses++
		c.stats.Bytes += e.bytes
		c.entries[key] = c.recent.PushFront(e)
		c.evict()
		c.mu.Unlock()
		c.fill(e, model)
	}
	select {
	case <-e.ready:
	case <-ctx.Done():
		c.release(e)
		return nil, nil, context.Cause(ctx)
	}
	if e.err != nil {
		c.drop(e)
		return nil, nil, e.err
	}
	return e.detector, sync.OnceFunc(func() { c.release(e) }), nil
}

// errUnfinished is what waiters get when loading ended in a panic.
var errUnfinished = errors.New("inference: loading the model did not finish")

// fill loads an entry's model and wakes who waits for it, whatever happens.
func (c *Cache) fill(e *cached, model []byte) {
	defer close(e.ready)
	e.err = errUnfinished
	e.detector, e.err = c.load(model)
}

func (c *Cache) load(model []byte) (*Detector, error) {
	m, err := models.Read(model, c.limits)
	if err != nil {
		return nil, err
	}
	return NewDetector(c.engine, m, 0)
}

// evict takes the least recently used models out of the cache until it is
// within its size. One in use is closed when its last user releases it. The
// caller holds mu.
func (c *Cache) evict() {
	for c.recent.Len() > c.size {
		c.remove(c.recent.Back())
	}
}

// remove takes an entry out of the cache. The caller holds mu.
func (c *Cache) remove(el *list.Element) {
	e := c.recent.Remove(el).(*cached)
	delete(c.entries, e.key)
	c.stats.Bytes -= e.bytes
	e.evicted = true
	if e.users == 0 && e.detector != nil {
		e.detector.Close()
	}
}

// drop takes a model that could not be read out of the cache, so that it is not
// counted against those that could.
func (c *Cache) drop(e *cached) {
	c.mu.Lock()
	if el, ok := c.entries[e.key]; ok && el.Value == any(e) {
		c.remove(el)
	}
	c.mu.Unlock()
	c.release(e)
}

func (c *Cache) release(e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.users--
	if e.users == 0 && e.evicted && e.detector != nil {
		e.detector.Close()
	}
}

// Len is the number of models in the cache.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recent.Len()
}

// Stats tells what the cache holds and how it was used.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Models = c.recent.Len()
	return s
}

// Close empties the cache. Models in use are closed when they are released.
func (c *Cache) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.recent.Len() > 0 {
		c.remove(c.recent.Back())
	}
}
