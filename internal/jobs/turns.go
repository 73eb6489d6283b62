package jobs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// idlePause is the longest time between two searches for messages without unfinished
	// jobs, and busyPause with them: a message that was published a moment ago, or given
	// back, is not found at once.
	idlePause = 20 * time.Second
	busyPause = 50 * time.Millisecond
	// clusterPause and runningPause are those of a cluster, with queued jobs and with running
	// ones only.
	clusterPause = 200 * time.Millisecond
	runningPause = time.Second
	// clusterPending is the maximum number of jobs of a caller that run at once in a cluster.
	clusterPending = 1000
	// consumerIdle is the time after which a cluster removes the consumer of a caller without
	// unfinished jobs.
	consumerIdle = time.Hour
)

// turnOf returns the name of a caller in subjects.
func turnOf(caller string) string {
	sum := sha256.Sum256([]byte(caller))
	return hex.EncodeToString(sum[:8])
}

// workOf returns the subject of a job's message.
func workOf(r *record) string { return workPrefix(r.Kind) + r.Turn + "." + r.ID }

// splitWork returns the turn and the id in the subject of a message.
func splitWork(subject string) (turn, id string) {
	parts := strings.SplitN(subject, ".", 4) // the stream, "work", the turn, the id
	if len(parts) < 4 {
		return "", ""
	}
	return parts[2], parts[3]
}

// kindOf returns the kind in the subject of a message.
func kindOf(subject string) string {
	stream, _, _ := strings.Cut(subject, ".")
	return cmp.Or(strings.TrimPrefix(strings.TrimPrefix(stream, workStream), "-"), KindTrain)
}

// addTurn adds a caller.
func (q *Queue) addTurn(turn string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addTurnLocked(turn)
}

// addTurnLocked adds a caller. The mutex must be held.
func (q *Queue) addTurnLocked(turn string) {
	if !slices.Contains(q.turns, turn) {
		q.turns = append(q.turns, turn)
	}
}

// puller takes the messages of the jobs of a kind.
type puller struct {
	q    *Queue
	kind string
	most int // messages at once, by this process

	mu        sync.Mutex
	consumers map[string]jetstream.Consumer // by turn
	last      string                        // turn of the last message
	searched  time.Time                     // when the turns with running jobs were searched last
}

// turns returns the callers to look for messages of, beginning with the one after the last,
// and how long to wait if they have none.
func (p *puller) turns() ([]string, time.Duration) {
	q := p.q
	q.mu.Lock()
	defer q.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(q.turns, p.last) + 1
	turns := slices.Concat(q.turns[i:], q.turns[:i])
	queued, running := map[string]bool{}, map[string]bool{}
	for _, e := range q.jobs {
		switch {
		case q.b.Embedded() && !e.record.State.Final():
			return turns, busyPause
		case cmp.Or(e.record.Kind, KindTrain) != p.kind:
		case e.record.State == Queued:
			queued[e.record.Turn] = true
		case e.record.State == Running:
			running[e.record.Turn] = true
		}
	}
	if q.b.Embedded() {
		return turns, idlePause
	}
	// In a cluster a search costs messages between the nodes. The message of a running job
	// comes back only if its runner is gone.
	wait := idlePause
	if len(running) > 0 {
		wait = runningPause
	}
	if len(queued) > 0 {
		wait = clusterPause
	}
	if time.Since(p.searched) < runningPause {
		clear(running)
	} else {
		p.searched = time.Now()
	}
	// A caller whose jobs have all ended stays in the order only while it has others.
	return slices.DeleteFunc(turns, func(turn string) bool { return !queued[turn] && !running[turn] }), wait
}

// runJobs does jobs until accepting ends or the store fails.
func (q *Queue) runJobs(accepting, working context.Context, w Worker, p *puller) error {
	for accepting.Err() == nil {
		q.sweep(accepting)
		q.mu.Lock()
		arrived := q.arrived
		q.mu.Unlock()
		turns, pause := p.turns()
		m, err := p.next(accepting, turns)
		if err != nil {
			return err
		}
		if m == nil {
			timer := time.NewTimer(pause)
			select {
			case <-accepting.Done():
			case <-arrived:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		p.mu.Lock()
		p.last, _ = splitWork(m.Subject())
		p.mu.Unlock()
		if err := q.runMessage(accepting, working, w, m); err != nil {
			return err
		}
	}
	return nil
}

// reset removes the consumers of an earlier process: the messages that it has not acknowledged
// would wait for ackWait. The consumers of a cluster are those of all nodes.
func (p *puller) reset(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.consumers = map[string]jetstream.Consumer{}
	if !p.q.b.Embedded() {
		return nil
	}
	work, err := p.q.stream(ctx, p.kind)
	if err != nil {
		return err
	}
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	names := work.ConsumerNames(ctx)
	for name := range names.Name() {
		if err := work.DeleteConsumer(ctx, name); err != nil {
			return err
		}
	}
	return names.Err()
}

// consumer returns the consumer of a caller.
func (p *puller) consumer(ctx context.Context, turn string) (jetstream.Consumer, error) {
	p.mu.Lock()
	c := p.consumers[turn]
	p.mu.Unlock()
	if c != nil {
		return c, nil
	}
	work, err := p.q.stream(ctx, p.kind)
	if err != nil {
		return nil, err
	}
	config := jetstream.ConsumerConfig{
		Durable: "worker-" + turn, FilterSubject: workPrefix(p.kind) + turn + ".*",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: p.q.ackWait, MaxAckPending: p.most, MaxDeliver: -1,
	}
	if !p.q.b.Embedded() {
		config.MaxAckPending, config.InactiveThreshold = clusterPending, consumerIdle
	}
	err = p.q.b.Retry(ctx, func(ctx context.Context) (err error) {
		if p.q.b.Embedded() {
			c, err = work.CreateConsumer(ctx, config)
		} else {
			c, err = work.CreateOrUpdateConsumer(ctx, config)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.consumers[turn] = c
	return c, nil
}

// next returns a message of the first of the callers that has any, or nil if there is none. Each
// caller has a consumer.
func (p *puller) next(ctx context.Context, turns []string) (jetstream.Msg, error) {
	for _, turn := range turns {
		c, err := p.consumer(ctx, turn)
		if err != nil {
			return nil, err
		}
		batch, err := c.FetchNoWait(1)
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
