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

// Cache keeps recently used models loaded. Its keys are the SHA-256 of the model
// files, its bound is the memory of the models, and it evicts the least recently used
// model first. A Cache may be used by several goroutines at once.
type Cache struct {
	limit   int64
	loading singleflight.Group

	mu      sync.Mutex
	entries *simplelru.LRU[string, *cached]
	stats   CacheStats
	closed  bool
}

// CacheStats are statistics of a cache.
type CacheStats struct {
	Models int   // models in the cache
	Bytes  int64 // sum of their Detector.Bytes
	// Leaving is the number of models that were evicted while in use. They are
	// closed after their last use.
	Leaving int
	// Hits and Misses count the calls of Get, Evictions the models that were evicted
	// because of the limit. They never fall.
	Hits, Misses, Evictions int64
}

// cached is a model that is in the cache, or was evicted while in use.
type cached struct {
	key      string
	detector *Detector
	bytes    int64
	users    int
	evicted  bool
}

// NewCache returns a cache that holds at most limit bytes of models, but always at
// least one model. The cache must be closed.
func NewCache(limit int64) *Cache {
	entries, err := simplelru.NewLRU[string, *cached](math.MaxInt, nil) // the bound is in bytes
	if err != nil {
		panic(err) // impossible: the size is positive
	}
	return &Cache{limit: limit, entries: entries}
}

// Get returns the detector of the model file with that SHA-256. It calls load if the
// model is not in the cache; concurrent calls for one model call load once. The
// caller may use the detector until it calls release. Get returns load's error, the
// cause of ctx if ctx ends first, or ErrClosed. A load goes on for the other callers
// if the context of the caller that started it ends.
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
		// The model is in the cache now, unless it was evicted already.
	}
}

// lease returns a model and counts a user of it, or nil if it is not in the cache.
// It counts one hit or miss for each counted variable.
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

// fill loads a model into the cache. It converts a panic to an error, because a panic
// in the loading goroutine would end the process.
func (c *Cache) fill(key string, load func() (*Detector, error)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("inference: panic while loading the model: %v\n%s", p, debug.Stack())
		}
	}()
	if c.has(key) {
		return nil // loaded since the caller looked it up
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

// Has reports whether the model file with that SHA-256 is loaded. It does not count as a use.
func (c *Cache) Has(sha256 string) bool { return c.has(sha256) }

func (c *Cache) has(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries.Contains(key)
}

// evict removes the least recently used models until the others are within the limit
// or one is left. It returns the unused ones, which the caller must close after it
// releases mu. The caller holds mu.
func (c *Cache) evict() (closing []*Detector) {
	for c.stats.Bytes > c.limit && c.entries.Len() > 1 {
		_, e, _ := c.entries.RemoveOldest()
		c.stats.Evictions++
		closing = c.removed(e, closing)
	}
	return closing
}

// removed updates the statistics for an entry that is no longer in the cache. It
// appends the entry's detector to closing if it is unused. The caller holds mu.
func (c *Cache) removed(e *cached, closing []*Detector) []*Detector {
	e.evicted = true
	c.stats.Bytes -= e.bytes
	if e.users == 0 {
		return append(closing, e.detector)
	}
	c.stats.Leaving++
	return closing
}

// release ends a use of a model. It updates the model's size, because a detector
// creates sessions as they are needed.
func (c *Cache) release(e *cached) {
	bytes := e.detector.Bytes()
	c.mu.Lock()
	var closing []*Detector
	e.users--
	switch {
	case !e.evicted:
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

// closeAll closes detectors. The caller must not hold mu: closing waits for runs.
func closeAll(detectors []*Detector) {
	for _, d := range detectors {
		d.Close()
	}
}

// Stats returns the current statistics.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Models = c.entries.Len()
	return s
}

// Room returns the number of bytes that are left before a model must be evicted. It
// can be negative.
func (c *Cache) Room() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.limit - c.stats.Bytes
}

// Close empties the cache; Get returns ErrClosed from then on. Models in use are
// closed when they are released.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	var closing []*Detector
	for c.entries.Len() > 0 {
		_, e, _ := c.entries.RemoveOldest()
		closing = c.removed(e, closing)
	}
	c.mu.Unlock()
	closeAll(closing)
}
