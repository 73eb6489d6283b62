package jobs

import "time"

// Load is how many jobs of a kind are unfinished.
type Load struct {
	Waiting, Running int
	// Oldest is how long the longest waiting job has waited since its submission, by the
	// clock.
	Oldest time.Duration
	// Redelivered is how many jobs this process took over from a runner that was gone, or
	// found running when it started.
	Redelivered int
}

// Loads returns the loads of all kinds that there is or was a job of.
func (q *Queue) Loads() map[string]Load {
	q.mu.Lock()
	defer q.mu.Unlock()
	loads := map[string]Load{}
	for kind, n := range q.redelivered {
		loads[kind] = Load{Redelivered: n}
	}
	now := time.Now()
	for _, e := range q.jobs {
		l := loads[e.record.Kind]
		switch e.record.State {
		case Queued:
			l.Waiting++
			l.Oldest = max(l.Oldest, now.Sub(e.record.CreatedAt))
		case Running:
			l.Running++
		}
		loads[e.record.Kind] = l
	}
	return loads
}

// countRedelivery counts a job whose runner was gone.
func (q *Queue) countRedelivery(kind string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.redelivered == nil {
		q.redelivered = map[string]int{}
	}
	q.redelivered[kind]++
}
