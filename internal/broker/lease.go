package broker

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	leaseBucket = "leases"
	// leaseRenewal is the time between two renewals of a lease. A process that has not renewed
	// it for leaseLost stops what it does by it; another takes it when it has not changed for
	// leaseFree. Each process measures by its own clock, so that no two clocks are compared.
	leaseRenewal = 3 * time.Second
	leaseLost    = 12 * time.Second
	leaseFree    = 20 * time.Second
)

// lease is the value of a lease's key.
type lease struct {
	Node  string `json:"node"` // that has it; empty when it was given back
	Count uint64 `json:"count"`
}

// Lead calls f in one process of the cluster at a time: in the one that has the lease of this
// name. The context of f ends when the lease is lost or ctx ends; another process may already
// have the lease then for a moment, if this process was stopped. Lead returns when ctx has ended
// and f has returned. With a server inside the process it calls f once.
func (b *Broker) Lead(ctx context.Context, name string, f func(ctx context.Context)) {
	if b.Embedded() {
		f(ctx)
		return
	}
	l := leader{b: b, name: name}
	for ctx.Err() == nil {
		held, err := l.take(ctx)
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, jetstream.ErrKeyExists) {
			b.o.Log.Warn("a lease cannot be read", slog.String("lease", name), slog.Any("error", err))
		}
		if held {
			l.lead(ctx, f)
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(leaseRenewal):
		}
	}
}

type leader struct {
	b        *Broker
	name     string
	kv       jetstream.KeyValue
	revision uint64    // that was seen last
	seen     time.Time // when
	count    uint64
	renewed  time.Time // when the last successful renewal began
}

// take takes the lease if it is free. It reports whether it did.
func (l *leader) take(ctx context.Context) (bool, error) {
	if l.kv == nil {
		kv, err := l.b.KeyValue(ctx, jetstream.KeyValueConfig{Bucket: leaseBucket})
		if err != nil {
			return false, err
		}
		l.kv = kv
	}
	e, err := l.b.Get(ctx, l.kv, l.name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return l.write(ctx, l.b.node, 0)
	}
	if err != nil {
		return false, err
	}
	if e.Revision() != l.revision {
		l.revision, l.seen = e.Revision(), time.Now()
	}
	var value lease
	if err := json.Unmarshal(e.Value(), &value); err != nil {
		value = lease{} // damaged
	}
	l.count = max(l.count, value.Count)
	if value.Node != "" && value.Node != l.b.node && time.Since(l.seen) < leaseFree {
		return false, nil
	}
	return l.write(ctx, l.b.node, l.revision)
}

// write writes the lease. It reports whether the lease was as expected.
func (l *leader) write(ctx context.Context, node string, revision uint64) (bool, error) {
	began := time.Now()
	l.count++
	value, err := json.Marshal(lease{Node: node, Count: l.count})
	if err != nil {
		return false, err
	}
	next, err := l.b.Update(ctx, l.kv, l.name, value, revision)
	if err != nil {
		return false, err
	}
	l.revision, l.seen, l.renewed = next, time.Now(), began
	return true, nil
}

// lead runs f and renews the lease until it is lost or ctx ends.
func (l *leader) lead(ctx context.Context, f func(ctx context.Context)) {
	working, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(working)
	}()
	// A renewal may wait for the servers for longer than the lease lasts.
	lost := time.AfterFunc(leaseLost, stop)
	defer lost.Stop()
	for working.Err() == nil {
		select {
		case <-done:
			stop()
		case <-working.Done():
		case <-time.After(leaseRenewal):
			if ok, err := l.write(working, l.b.node, l.revision); ok {
				lost.Reset(leaseLost - time.Since(l.renewed))
			} else if errors.Is(err, jetstream.ErrKeyExists) {
				stop()
			}
		}
	}
	<-done
	// The next process does not have to wait.
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	_, _ = l.write(back, "", l.revision)
}
