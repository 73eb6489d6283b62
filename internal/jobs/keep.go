package jobs

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// keepInterval is the time between two repairs of what nodes left undone.
	keepInterval = 5 * time.Second
	// repairAge is how long something must look wrong before it is repaired: a submission
	// needs some time between its steps.
	repairAge = 20 * time.Second
	// ownerAge is how long the node of an attached job must not have answered, or not know
	// the job, before the job is cancelled.
	ownerAge = time.Minute
	// tidyInterval is the time between two searches for files that nobody needs, and tidyAge
	// how long they must not have changed.
	tidyInterval = 10 * time.Minute
	tidyAge      = 30 * time.Minute
	// markerAge is how long the marker of a removed record is kept, for nodes that were cut
	// off meanwhile. Later ones find out by the missing record.
	markerAge = time.Hour
)

// Keep keeps a cluster in order, in one of the nodes that call it at a time, until ctx ends: it
// removes jobs that are too old, sends messages that were not sent, cancels attached jobs that no
// request waits for, and removes files that nobody needs. In a folder, Open does that.
func (q *Queue) Keep(ctx context.Context) {
	if q.b.Embedded() {
		return
	}
	q.b.Lead(ctx, "jobs-keep", func(ctx context.Context) {
		k := newKeeper(q, repairAge, ownerAge)
		for ctx.Err() == nil {
			if err := k.keep(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, broker.ErrUnavailable) {
				q.o.Log.Warn("the jobs cannot be kept in order", slog.Any("error", err))
			}
			select {
			case <-ctx.Done():
			case <-time.After(keepInterval):
			}
		}
	})
}

// keeper finds what is wrong for longer than the steps of another node take.
type keeper struct {
	q     *Queue
	wrong map[string]time.Time // since when, by what
	seen  map[string]bool      // what is wrong in this round

	repairAge, ownerAge time.Duration
	files, saved        *broker.Tidier
	tidied              time.Time
}

func newKeeper(q *Queue, repairAge, ownerAge time.Duration) *keeper {
	return &keeper{
		q: q, wrong: map[string]time.Time{}, repairAge: repairAge, ownerAge: ownerAge,
		files: q.files.Tidier(tidyAge), saved: q.saved.Tidier(tidyAge), tidied: time.Now(),
	}
}

// since reports whether something has been wrong for an age.
func (k *keeper) since(what string, age time.Duration) bool {
	k.seen[what] = true
	if _, ok := k.wrong[what]; !ok {
		k.wrong[what] = time.Now()
	}
	return time.Since(k.wrong[what]) >= age
}

func (k *keeper) keep(ctx context.Context) error {
	k.seen = map[string]bool{}
	defer maps.DeleteFunc(k.wrong, func(what string, _ time.Time) bool { return !k.seen[what] })
	k.q.removeOld(ctx)
	err := errors.Join(k.repairMessages(ctx), k.removeAttached(ctx))
	if time.Since(k.tidied) >= tidyInterval {
		k.tidied = time.Now()
		err = errors.Join(err, k.tidy(ctx))
	}
	return err
}

// records returns all records.
func (q *Queue) records() []record {
	q.mu.Lock()
	defer q.mu.Unlock()
	var list []record
	for _, e := range q.jobs {
		list = append(list, e.record)
	}
	slices.SortFunc(list, func(a, b record) int { return cmp.Compare(a.Number, b.Number) })
	return list
}

// repairMessages sends the messages of jobs that have none, and removes those of jobs that have
// ended.
func (k *keeper) repairMessages(ctx context.Context) error {
	waiting, err := k.q.waiting(ctx)
	if err != nil {
		return err
	}
	for _, r := range k.q.records() {
		subject := workOf(&r)
		has := waiting[subject] > 0
		delete(waiting, subject)
		if r.State.Final() == has && k.since("message "+subject, k.repairAge) {
			if has {
				err = k.removeMessage(ctx, r.Kind, subject)
			} else {
				k.q.o.Log.Warn("a job had no message", slog.String("job", r.ID))
				err = k.q.publish(ctx, &r, r.ID+"."+k.q.nextChange()) // the first id may be known still
			}
			if err != nil {
				return err
			}
		}
	}
	for subject := range waiting {
		if !k.since("message "+subject, k.repairAge) {
			continue
		}
		_, id := splitWork(subject)
		if _, err := k.q.entry(id); !errors.Is(err, ErrUnknown) {
			continue // this node has not heard of the job yet
		}
		if err := k.removeMessage(ctx, kindOf(subject), subject); err != nil {
			return err
		}
	}
	return nil
}

// removeMessage removes the message of a job that has ended.
func (k *keeper) removeMessage(ctx context.Context, kind, subject string) error {
	s, err := k.q.stream(ctx, kind)
	if err != nil {
		return err
	}
	return k.q.b.Retry(ctx, func(ctx context.Context) error {
		return s.Purge(ctx, jetstream.WithPurgeSubject(subject))
	})
}

// removeAttached cancels and removes attached jobs whose request is gone.
func (k *keeper) removeAttached(ctx context.Context) error {
	q := k.q
	silent := map[string]bool{} // nodes that are not asked again, because each question takes time
	for _, r := range q.records() {
		if !r.Attached {
			continue
		}
		if !silent[r.Owner] {
			answer, waits, _ := q.ask(ctx, r.Owner, question{Job: r.ID})
			if waits {
				continue
			}
			silent[r.Owner] = !answer
		}
		if !k.since("owner "+r.ID, k.ownerAge) {
			continue
		}
		q.o.Log.Warn("the request of a job is gone", slog.String("job", r.ID), slog.String("node", r.Owner))
		if err := q.deleteAll(ctx, r.ID); err != nil && !errors.Is(err, ErrUnknown) {
			return err
		}
	}
	return nil
}

// tidy removes files that nobody needs, and old markers of removed records.
func (k *keeper) tidy(ctx context.Context) error {
	jobs := map[string]record{}
	for _, r := range k.q.records() {
		jobs[r.ID] = r
	}
	removed, err := k.files.Tidy(ctx, func(name string) bool {
		r, ok := jobs[idOf(name)]
		return ok && (!r.State.Final() || r.keeps(name))
	})
	more, err2 := k.saved.Tidy(ctx, func(name string) bool {
		r, ok := jobs[idOf(name)]
		return ok && !r.State.Final()
	})
	if removed+more > 0 {
		k.q.o.Log.Info("removed files of jobs that were not accepted or have ended", slog.Int("removed", removed+more))
	}
	return errors.Join(err, err2, k.q.b.PurgeMarkers(ctx, k.q.states, markerAge))
}
