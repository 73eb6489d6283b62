package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// idlePause is the longest time between two searches for messages without unfinished
	// jobs, and busyPause with them: a message that was published a moment ago, or given
	// back, is not found at once.
	idlePause = 20 * time.Second
	busyPause = 50 * time.Millisecond
)

// turnOf returns the name of a caller in subjects.
func turnOf(caller string) string {
	sum := sha256.Sum256([]byte(caller))
	return hex.EncodeToString(sum[:8])
}

// workOf returns the subject of a job's message.
func workOf(r *record) string { return workSubject + r.Turn + "." + r.ID }

// splitWork returns the turn and the id in the subject of a message.
func splitWork(subject string) (turn, id string) {
	turn, id, _ = strings.Cut(strings.TrimPrefix(subject, workSubject), ".")
	return turn, id
}

// addTurn adds a caller.
func (q *Queue) addTurn(turn string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !slices.Contains(q.turns, turn) {
		q.turns = append(q.turns, turn)
	}
}

// turnsAfter returns all callers, beginning with the one after the last.
func (q *Queue) turnsAfter(last string) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.turns, last) + 1
	return slices.Concat(q.turns[i:], q.turns[:i])
}

// pause returns how long to wait for messages at most.
func (q *Queue) pause() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.jobs {
		if !e.record.State.Final() {
			return busyPause
		}
	}
	return idlePause
}

// runJobs does jobs until accepting ends or the store fails.
func (q *Queue) runJobs(accepting, working context.Context, w Worker) error {
	if err := q.removeConsumers(accepting); err != nil {
		return err
	}
	consumers, last := map[string]jetstream.Consumer{}, "" // by turn
	for accepting.Err() == nil {
		q.sweep(accepting)
		m, err := q.nextMessage(accepting, consumers, last)
		if err != nil {
			return err
		}
		if m == nil {
			timer := time.NewTimer(q.pause())
			select {
			case <-accepting.Done():
			case <-q.submitted:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		last, _ = splitWork(m.Subject())
		if err := q.runMessage(accepting, working, w, m); err != nil {
			return err
		}
	}
	return nil
}

// removeConsumers removes the consumers of an earlier process: the messages that it has
// not acknowledged would wait for ackWait.
func (q *Queue) removeConsumers(ctx context.Context) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	names := q.work.ConsumerNames(ctx)
	for name := range names.Name() {
		if err := q.work.DeleteConsumer(ctx, name); err != nil {
			return err
		}
	}
	return names.Err()
}

// nextMessage returns a message of the first caller after the last one that has any, or
// nil if there is none. Each caller has a consumer.
func (q *Queue) nextMessage(ctx context.Context, consumers map[string]jetstream.Consumer, last string) (jetstream.Msg, error) {
	for _, turn := range q.turnsAfter(last) {
		if consumers[turn] == nil {
			limited, cancel := withTimeout(ctx)
			c, err := q.work.CreateConsumer(limited, jetstream.ConsumerConfig{
				Durable: "worker-" + turn, FilterSubject: workSubject + turn + ".*",
				AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxAckPending: 1, MaxDeliver: -1,
			})
			cancel()
			if err != nil {
				return nil, err
			}
			consumers[turn] = c
		}
		batch, err := consumers[turn].FetchNoWait(1)
		if err != nil {
			return nil, err
		}
		var found jetstream.Msg
		for m := range batch.Messages() {
			found = m
		}
		if found != nil {
			return found, nil
		}
		if err := batch.Error(); err != nil {
			return nil, err
		}
	}
	return nil, nil
}
