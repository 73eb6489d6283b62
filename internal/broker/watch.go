package broker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Change is a change of a key.
type Change struct {
	Key      string
	Value    []byte
	Revision uint64
	Removed  bool // Value is nil
}

const (
	// watchRenewal is how long a consumer of a watch is used. The next one, often on another
	// server, finds what a server that is cut off from the others has missed, and keys that
	// were removed without a marker.
	watchRenewal = 30 * time.Second
	// watchHeartbeat is the time between two signs of life of a consumer. Two missing ones
	// end it.
	watchHeartbeat = 2 * time.Second
	watchBatch     = 256
	watchPause     = 250 * time.Millisecond
)

// errBehind is returned when the server that answers has less than was read already.
var errBehind = errors.New("the server has not all changes yet")

// Watch calls change with the value of each key of a bucket, and then with each change, until
// ctx ends. After a failure it goes on where it was: it may leave out a value that was replaced
// meanwhile, but never the latest one. It calls current, if not nil, once, when change has been
// called with all that the bucket had.
func (b *Broker) Watch(ctx context.Context, bucket string, change func(Change), current func()) {
	w := watcher{b: b, bucket: bucket, change: change, current: current, known: map[string]uint64{}, markers: map[string]bool{}}
	failed := false
	for ctx.Err() == nil {
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failed = false
			continue
		}
		if !failed && !errors.Is(err, errBehind) {
			b.o.Log.Warn("changes cannot be read and are read again", slog.String("bucket", bucket), slog.Any("error", err))
		}
		failed = true
		select {
		case <-ctx.Done():
		case <-time.After(watchPause):
		}
	}
}

type watcher struct {
	b       *Broker
	bucket  string
	change  func(Change)
	current func()
	known   map[string]uint64 // revisions of the keys
	markers map[string]bool   // keys that were removed and have a marker
	last    uint64            // sequence of the last change
	behind  time.Time         // since when a server has less than last
}

// follow reads changes with one consumer, for watchRenewal at most.
func (w *watcher) follow(ctx context.Context) error {
	var s jetstream.Stream
	err := w.b.Retry(ctx, func(ctx context.Context) (err error) {
		s, err = w.b.JetStream.Stream(ctx, kvStreamPrefix+w.bucket)
		return err
	})
	if err != nil {
		return err
	}
	prefix := kvPrefix + w.bucket + "."
	subjects, last, err := w.b.Subjects(ctx, s, ">")
	if err != nil {
		return err
	}
	if last < w.last {
		// By a server that is behind; if that lasts, the bucket was made anew.
		if w.behind.IsZero() {
			w.behind = time.Now()
		}
		if time.Since(w.behind) < watchRenewal {
			return errBehind
		}
		w.last = 0
	}
	w.behind = time.Time{}
	for _, key := range slices.Sorted(maps.Keys(w.known)) {
		if revision := w.known[key]; subjects[prefix+key] == 0 && (revision <= last || w.last == 0) {
			delete(w.known, key)
			w.change(Change{Key: key, Revision: last, Removed: true})
		}
	}
	maps.DeleteFunc(w.markers, func(key string, _ bool) bool { return subjects[prefix+key] == 0 })
	if last == w.last && len(subjects) > len(w.known)+len(w.markers) {
		// A server that was catching up has left out a change: all are read again.
		w.last = 0
	}
	if last == w.last || len(subjects) == 0 {
		w.last = last
		w.complete()
	}
	var c jetstream.Consumer
	create, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	c, err = s.CreateConsumer(create, jetstream.ConsumerConfig{
		FilterSubject: prefix + ">", DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: w.last + 1,
		AckPolicy: jetstream.AckNonePolicy, InactiveThreshold: watchRenewal, MemoryStorage: true, Replicas: 1,
	})
	if err != nil {
		return err
	}
	defer func() {
		remove, cancel := context.WithTimeout(context.WithoutCancel(ctx), tryTimeout)
		defer cancel()
		_ = s.DeleteConsumer(remove, c.CachedInfo().Name) // it removes itself later
	}()
	for end := time.Now().Add(watchRenewal); ctx.Err() == nil && time.Now().Before(end); {
		wait, cancel := context.WithTimeout(ctx, max(time.Until(end), 3*watchHeartbeat))
		batch, err := c.Fetch(watchBatch, jetstream.FetchContext(wait), jetstream.FetchHeartbeat(watchHeartbeat))
		if err != nil {
			cancel()
			return err
		}
		for m := range batch.Messages() {
			if err := w.apply(m, prefix); err != nil {
				cancel()
				return err
			}
		}
		err = batch.Error()
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return nil
}

// apply passes a change on.
func (w *watcher) apply(m jetstream.Msg, prefix string) error {
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	if meta.Sequence.Stream > w.last { // else it was delivered before
		w.last = meta.Sequence.Stream
		c := Change{Key: strings.TrimPrefix(m.Subject(), prefix), Value: m.Data(), Revision: w.last}
		h := m.Headers()
		if op := h.Get("KV-Operation"); op == "DEL" || op == "PURGE" || h.Get("Nats-Marker-Reason") != "" {
			c.Value, c.Removed = nil, true
		}
		if c.Removed {
			delete(w.known, c.Key)
			w.markers[c.Key] = true
		} else {
			delete(w.markers, c.Key)
			w.known[c.Key] = c.Revision
		}
		w.change(c)
	}
	if meta.NumPending == 0 {
		w.complete()
	}
	return nil
}

// complete calls current the first time.
func (w *watcher) complete() {
	if w.current != nil {
		w.current()
		w.current = nil
	}
}
