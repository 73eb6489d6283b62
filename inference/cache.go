package inference

import (
	"context"
	"fmt"
	"math"
	"runtime/debug"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sync/singleflight"
)

// Cache keeps the models of recent requests loaded, known by the SHA-256 of
// their bytes, so that a model is read and made a session once. It is bounded by
// the memory that the models take; the least recently used leave first. Several
// goroutines may use it at once.
type Cache struct {
	limit   int64
	loading singleflight.Group

	mu      sync.Mutex
	entries *simplelru.LRU[string, *cached]
	stats   CacheStats
	closed  bool
}

// CacheStats are figures of a cache. Those that count never fall.
type CacheStats struct {
	Models int   // in the cache
	Bytes  int64 // what they take, by Detector.Bytes
	// Leaving is the number of models that left while in use, and are closed
	// when their last user is done.
	Leaving int
	// Hits and Misses count what Get was asked for, Evictions the models that
	// left to make room.
	Hits, Misses, Evictions int64
}

// cached is a model in the cache, or one that left it while in use.
type cached struct {
	key      string
	detector *Detector
	bytes    int64
	users    int
	left     bool
}

// NewCache keeps models of at most so many bytes in all, and at least one. It
// must be closed.
func NewCache(limit int64) *Cache {
	entries, err := simplelru.NewLRU[string, *cached](math.MaxInt, nil) // bounded by bytes, not by number
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Cache{limit: limit, entries: entries}
}

// Get gives the detector of a model, known by the SHA-256 of its file, calling
// load when it is not in the cache; of several that ask for the same one at once,
// one calls it. The detector is the caller's until release is called. It returns
// load's error, the context's cause when that ends first, and ErrClosed. A load
// that was begun goes on for the others when its caller leaves.
func (c *Cache) Get(ctx context.Context, sha256 string, load func() (*Detector, error)) (d *Detector, release func(), err error) {
	counted := false
	for {
		e, err := c.lease(sha256, &counted)
		if err != nil {
			return nil, nil, err
		}
		if e != nil {
			return e.detector, sync.OnceFunc(func() { c.release(e) }), nil
		}
		loaded := c.loading.DoChan(sha256, func() (any, error) { return nil, c.fill(sha256, load) })
		select {
		case r := <-loaded:
			if r.Err != nil {
				return nil, nil, r.Err
			}
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
		// It is in the cache now, unless others have pushed it out again.
	}
}

// lease takes a model of the cache into use; nil when it is not there.
func (c *Cache) lease(key string, counted *bool) (*cached, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	e, ok := c.entries.Get(key)
	if ok {
		e.users++
	}
	if !*counted {
		*counted = true
		if ok {
			c.stats.Hits++
		} else {
			c.stats.Misses++
		}
	}
	return e, nil
}

// fill loads a model into the cache. A panic becomes an error: it would end the
// process in the goroutine that loads.
func (c *Cache) fill(key string, load func() (*Detector, error)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("inference: loading the model panicked: %v\n%s", p, debug.Stack())
		}
	}()
	if c.has(key) {
		return nil // loaded between the caller's look and now
	}
	d, err := load()
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		d.Close()
		return ErrClosed
	}
	e := &cached{key: key, detector: d, bytes: d.Bytes()}
	c.entries.Add(key, e)
	c.stats.Bytes += e.bytes
	closing := c.evict()
	c.mu.Unlock()
	closeAll(closing)
	return nil
}

func (c *Cache) has(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries.Contains(key)
}

// evict takes the least recently used models out until the others are within
// the limit, and gives those that nobody uses, to be closed. The most recent one
// stays. The caller holds mu.
func (c *Cache) evict() (closing []*Detector) {
	for c.stats.Bytes > c.limit && c.entries.Len() > 1 {
		_, e, _ := c.entries.RemoveOldest()
		c.stats.Evictions++
		closing = c.leave(e, closing)
	}
	return closing
}

// leave notes that an entry is out of the cache. The caller holds mu.
func (c *Cache) leave(e *cached, closing []*Detector) []*Detector {
	e.left = true
	c.stats.Bytes -= e.bytes
	if e.users == 0 {
		return append(closing, e.detector)
	}
	c.stats.Leaving++
	return closing
}

// release ends a use, and counts what the detector has come to take: it makes
// sessions as they are needed.
func (c *Cache) release(e *cached) {
	bytes := e.detector.Bytes()
	c.mu.Lock()
	var closing []*Detector
	e.users--
	switch {
	case !e.left:
		c.stats.Bytes += bytes - e.bytes
		e.bytes = bytes
		closing = c.evict()
	case e.users == 0:
		c.stats.Leaving--
		closing = []*Detector{e.detector}
	}
	c.mu.Unlock()
	closeAll(closing)
}

// closeAll closes detectors; without mu, because that waits for their runs.
func closeAll(detectors []*Detector) {
	for _, d := range detectors {
		d.Close()
	}
}

// Stats are the cache's figures at the moment.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Models = c.entries.Len()
	return s
}

// Room is how many bytes models may still take before one must leave.
func (c *Cache) Room() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.limit - c.stats.Bytes
}

// Close empties the cache for good. Models in use are closed when they are
// released.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	var closing []*Detector
	for c.entries.Len() > 0 {
		_, e, _ := c.entries.RemoveOldest()
		closing = c.leave(e, closing)
	}
	c.mu.Unlock()
	closeAll(closing)
}
