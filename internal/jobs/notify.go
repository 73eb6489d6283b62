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
)

// delivery is the state of the callback of a job that has ended.
type delivery struct {
	tries int
	due   time.Time
}

// Notify calls deliver with each job that has ended and has a callback, until deliver
// returns nil or maxDeliveries tries have failed. A job is delivered at least once, also
// if the process ends in between. Notify returns when ctx ends.
func (q *Queue) Notify(ctx context.Context, deliver func(ctx context.Context, url string, j Job) error) {
	pending := map[string]*delivery{}
	for ctx.Err() == nil {
		e, wait := q.nextDelivery(pending)
		if e == nil {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-q.ended:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		q.mu.Lock()
		job, url := e.record.Job, e.record.Callback
		q.mu.Unlock()
		err := deliver(ctx, url, job)
		if err != nil && ctx.Err() != nil {
			return // the next process delivers it
		}
		d := pending[job.ID]
		if d.tries++; err != nil && d.tries < maxDeliveries {
			d.due = time.Now().Add(firstDeliveryPause << (d.tries - 1))
			q.o.Log.Info("a callback was not delivered and is tried again", slog.String("job", job.ID), slog.Any("error", err))
			continue
		}
		if err != nil {
			q.o.Log.Warn("a callback was not delivered", slog.String("job", job.ID), slog.Int("tries", d.tries), slog.Any("error", err))
		}
		// If this fails, the callback is delivered again by the next process.
		if err := q.change(ctx, e, func(r *record) error { r.Callback = ""; return nil }); err != nil {
			q.mu.Lock()
			e.record.Callback = ""
			q.mu.Unlock()
		}
	}
}

// nextDelivery returns a job whose callback is due, or nil and how long none will be. It
// removes jobs without a callback from pending.
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
		if !d.due.After(now) {
			return e, 0
		}
		wait = min(wait, d.due.Sub(now))
	}
	return nil, wait
}
