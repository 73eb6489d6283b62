package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	kvStreamPrefix = "KV_"
	kvPrefix       = "$KV."
	// duplicateWindow is how long a stream knows the ids of its messages.
	duplicateWindow = 2 * time.Minute
)

// Stream creates or updates a stream on disk.
func (b *Broker) Stream(ctx context.Context, c jetstream.StreamConfig) (s jetstream.Stream, err error) {
	c.Storage, c.Replicas = jetstream.FileStorage, b.o.Replicas
	if !b.Embedded() && c.Duplicates == 0 {
		c.Duplicates = duplicateWindow
	}
	err = b.RetryFor(ctx, startTimeout, func(ctx context.Context) (err error) {
		s, err = b.JetStream.CreateOrUpdateStream(ctx, c)
		return err
	})
	return s, err
}

// KeyValue creates or updates a key-value bucket on disk. In a cluster its values are read
// from the leader, so that a process reads what another has written before.
func (b *Broker) KeyValue(ctx context.Context, c jetstream.KeyValueConfig) (kv jetstream.KeyValue, err error) {
	if b.Embedded() {
		c.Storage, c.Replicas = jetstream.FileStorage, 1
		err = b.RetryFor(ctx, startTimeout, func(ctx context.Context) (err error) {
			kv, err = b.JetStream.CreateOrUpdateKeyValue(ctx, c)
			return err
		})
		return kv, err
	}
	window := duplicateWindow
	if c.TTL > 0 {
		window = min(window, c.TTL)
	}
	unlimited := func(n int64) int64 {
		if n == 0 {
			return -1
		}
		return n
	}
	// The library's configuration, but without AllowDirect: followers would answer, which
	// may not have the latest values yet.
	_, err = b.Stream(ctx, jetstream.StreamConfig{
		Name: kvStreamPrefix + c.Bucket, Description: c.Description, Subjects: []string{kvPrefix + c.Bucket + ".>"},
		MaxMsgsPerSubject: max(int64(c.History), 1), MaxBytes: unlimited(c.MaxBytes), MaxAge: c.TTL, MaxMsgSize: int32(unlimited(int64(c.MaxValueSize))),
		AllowRollup: true, DenyDelete: true, Duplicates: window, MaxMsgs: -1, MaxConsumers: -1, Discard: jetstream.DiscardNew, Metadata: c.Metadata,
	})
	if err != nil {
		return nil, err
	}
	err = b.RetryFor(ctx, startTimeout, func(ctx context.Context) (err error) {
		kv, err = b.JetStream.KeyValue(ctx, c.Bucket)
		return err
	})
	return kv, err
}

// Get returns the value of a key. It returns jetstream.ErrKeyNotFound if there is none.
func (b *Broker) Get(ctx context.Context, kv jetstream.KeyValue, key string) (e jetstream.KeyValueEntry, err error) {
	err = b.Retry(ctx, func(ctx context.Context) (err error) {
		e, err = kv.Get(ctx, key)
		return err
	})
	return e, err
}

// Update sets the value of a key whose revision is still the given one, or creates the key if
// revision is 0. It returns the new revision, and jetstream.ErrKeyExists if another has changed
// the key. No other writer may write the same value: if an answer was lost, Update compares the
// value to find out whose it is.
func (b *Broker) Update(ctx context.Context, kv jetstream.KeyValue, key string, value []byte, revision uint64) (next uint64, err error) {
	tries := 0
	err = b.Retry(ctx, func(ctx context.Context) (err error) {
		tries++
		if revision == 0 {
			next, err = kv.Create(ctx, key, value)
		} else {
			next, err = kv.Update(ctx, key, value, revision)
		}
		if !isWrongRevision(err) {
			return err
		}
		if err = fmt.Errorf("%w: %w", jetstream.ErrKeyExists, err); tries == 1 {
			return err
		}
		e, read := kv.Get(ctx, key)
		switch {
		case errors.Is(read, jetstream.ErrKeyNotFound):
			return err
		case read != nil:
			return read
		case bytes.Equal(e.Value(), value):
			next = e.Revision()
			return nil
		}
		return err
	})
	return next, err
}

// Delete removes a key whose revision is still the given one, or any if revision is 0. It leaves
// a marker, so that Watch reports the removal; see PurgeMarkers. It returns
// jetstream.ErrKeyExists if another has changed the key. An unknown key is no error.
func (b *Broker) Delete(ctx context.Context, kv jetstream.KeyValue, key string, revision uint64) error {
	var options []jetstream.KVDeleteOpt
	if revision > 0 {
		options = append(options, jetstream.LastRevision(revision))
	}
	tries := 0
	return b.Retry(ctx, func(ctx context.Context) error {
		tries++
		err := kv.Delete(ctx, key, options...)
		if err == nil || !isWrongRevision(err) {
			return err
		}
		if tries > 1 {
			if _, read := kv.Get(ctx, key); errors.Is(read, jetstream.ErrKeyNotFound) {
				return nil // by an earlier try
			}
		}
		return jetstream.ErrKeyExists
	})
}

// DeleteStored is Delete of a key that has a value. For one that was deleted before it leaves the
// marker as it is, so that PurgeMarkers removes that when it is old enough.
func (b *Broker) DeleteStored(ctx context.Context, kv jetstream.KeyValue, key string) error {
	_, err := b.Get(ctx, kv, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return b.Delete(ctx, kv, key, 0)
}

// isWrongRevision reports whether an error is that of another revision than expected. Streams
// with several replicas have a code of their own for it, which jetstream.ErrKeyExists does not
// match.
func isWrongRevision(err error) bool {
	if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return true
	}
	api := apiError(err)
	return api != nil && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// PurgeMarkers removes the markers of keys that were deleted longer ago than age. It compares the
// clocks of servers with that of this process; a marker that is removed too early is not missed
// (see Watch).
func (b *Broker) PurgeMarkers(ctx context.Context, kv jetstream.KeyValue, age time.Duration) error {
	return b.RetryFor(ctx, purgeTimeout, func(ctx context.Context) error {
		return kv.PurgeDeletes(ctx, jetstream.DeleteMarkersOlderThan(age))
	})
}

// Subjects returns the subjects of the messages in a stream, and how many each has.
func (b *Broker) Subjects(ctx context.Context, s jetstream.Stream, filter string) (subjects map[string]uint64, last uint64, err error) {
	err = b.Retry(ctx, func(ctx context.Context) error {
		info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
		if err != nil {
			return err
		}
		subjects, last = info.State.Subjects, info.State.LastSeq
		return nil
	})
	return subjects, last, err
}
