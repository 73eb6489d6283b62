// Package sim simulates a cluster of the service by discrete events: processors that
// processes share, the admission, cache and batching of a serving process, rendezvous
// hashing, the streams and object stores of NATS, and workers. It knows nothing about
// where its service times come from.
//
// A simulation is a function of its configuration and its seed. Times are in seconds.
package sim

// event is something that happens at a time.
type event struct {
	at  float64
	seq uint64 // of two events at the same time, the one scheduled first comes first
	do  func()
}

// Loop runs events in the order of their times.
type Loop struct {
	now    float64
	seq    uint64
	events []event // a heap with four children per node
	count  uint64
}

// Now returns the time of the running event.
func (l *Loop) Now() float64 { return l.now }

// Events returns the number of events that have run.
func (l *Loop) Events() uint64 { return l.count }

// After schedules do after a delay, which is at least 0.
func (l *Loop) After(delay float64, do func()) {
	if delay < 0 {
		delay = 0
	}
	l.seq++
	l.events = append(l.events, event{l.now + delay, l.seq, do})
	l.up(len(l.events) - 1)
}

// Run runs events up to a time, until there are none.
func (l *Loop) Run(until float64) {
	for len(l.events) > 0 && l.events[0].at <= until {
		e := l.events[0]
		last := len(l.events) - 1
		l.events[0] = l.events[last]
		l.events[last] = event{} // so that its function can be collected
		l.events = l.events[:last]
		if last > 0 {
			l.down(0)
		}
		l.now = e.at
		l.count++
		e.do()
	}
	l.now = max(l.now, until)
}

func before(a, b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

func (l *Loop) up(i int) {
	for i > 0 {
		parent := (i - 1) / 4
		if !before(&l.events[i], &l.events[parent]) {
			return
		}
		l.events[i], l.events[parent] = l.events[parent], l.events[i]
		i = parent
	}
}

func (l *Loop) down(i int) {
	for {
		first := 4*i + 1
		if first >= len(l.events) {
			return
		}
		least := first
		for c := first + 1; c < min(first+4, len(l.events)); c++ {
			if before(&l.events[c], &l.events[least]) {
				least = c
			}
		}
		if !before(&l.events[least], &l.events[i]) {
			return
		}
		l.events[i], l.events[least] = l.events[least], l.events[i]
		i = least
	}
}
