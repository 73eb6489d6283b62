package jobs

import (
	"context"
	"log/slog"
	"time"
)

const (
	// maxDeliveries is the number of tries to deliver the callback of a job. With the
	// pauses between them, they take about 17 minutes.
	maxDeliveries = 11
	// firstDeliveryPause is the pause after the first try. Each further one is twice as
	// long.
	firstDeliveryPause = time.Second
	// maxDelivering is the maximum number of callbacks that are sent at once: a receiver
	// that does not answer must not delay those of others.
	maxDelivering = 8
)

// delivery is the state of the callback of a job that has ended.
type delivery struct {
	tries   int
	due     time.Time
	sending bool
}

// delivered is the result of a try.
type delivered struct {
	e   *entry
	d   *delivery
	id  string
	err error
}

// Notify calls deliver with each job that has ended and has a callback, until deliver
// returns nil or maxDeliveries tries have failed. It calls deliver for up to maxDelivering
// jobs at once. A job is delivered at least once, also if the process ends in between.
// Notify returns when ctx has ended and no deliver runs. In a cluster one of the nodes that call
// it delivers at a time.
func (q *Queue) Notify(ctx context.Context, deliver func(ctx context.Context, url string, j Job) error) {
	q.b.Lead(ctx, "jobs-notify", func(ctx context.Context) { q.notify(ctx, deliver) })
}

func (q *Queue) notify(ctx context.Context, deliver func(ctx context.Context, url string, j Job) error) {
	pending := map[string]*delivery{}
	results, sending := make(chan delivered), 0
	for ctx.Err() == nil {
		var e *entry
		wait := time.Hour
		if sending < maxDelivering {
			e, wait = q.nextDelivery(pending)
		}
		if e != nil {
			q.mu.Lock()
			job, url := e.record.Job, e.record.Callback
			q.mu.Unlock()
			d := pending[job.ID]
			d.sending = true
			sending++
			go func() { results <- delivered{e, d, job.ID, deliver(ctx, url, job)} }()
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-q.ended:
		case <-timer.C:
		case r := <-results:
			sending--
			q.recordDelivery(ctx, r)
		}
		timer.Stop()
	}
	for ; sending > 0; sending-- {
		q.recordDelivery(ctx, <-results)
	}
}

// recordDelivery records the result of a try.
func (q *Queue) recordDelivery(ctx context.Context, r delivered) {
	d := r.d
	d.sending = false
	if r.err != nil && ctx.Err() != nil {
		return // the next process delivers it
	}
	if d.tries++; r.err != nil && d.tries < maxDeliveries {
		d.due = time.Now().Add(firstDeliveryPause << (d.tries - 1))
		q.o.Log.Info("a callback was not delivered and is tried again", slog.String("job", r.id), slog.Any("error", r.err))
		return
	}
	if r.err != nil {
		q.o.Log.Warn("a callback was not delivered", slog.String("job", r.id), slog.Int("tries", d.tries), slog.Any("error", r.err))
	}
	// If this fails, the callback is delivered again by the next process.
	if err := q.change(ctx, r.e, func(rec *record) error { rec.Callback = ""; return nil }); err != nil {
		q.mu.Lock()
		r.e.record.Callback = ""
		q.mu.Unlock()
	}
}

// nextDelivery returns a job whose callback is due and not being sent, or nil and how long
// none will be. It removes jobs without a callback from pending.
func (q *Queue) nextDelivery(pending map[string]*delivery) (*entry, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id := range pending {
		if e := q.jobs[id]; e == nil || e.record.Callback == "" {
			delete(pending, id)
		}
	}
	wait, now := time.Hour, time.Now()
	for id, e := range q.jobs {
		if !e.record.State.Final() || e.record.Callback == "" {
			continue
		}
		d := pending[id]
		if d == nil {
			d = &delivery{due: now}
			pending[id] = d
		}
		if d.sending {
			continue
		}
		if !d.due.After(now) {
			return e, 0
		}
		wait = min(wait, d.due.Sub(now))
	}
	return nil, wait
}
