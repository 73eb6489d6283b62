package sim

import "container/heap"

// Machine has a number of cores, which all tasks on it share as Linux's fair scheduler
// shares them: in proportion to weights, no thread faster than one core.
type Machine struct {
	loop    *Loop
	cores   float64
	classes []*class
	updated float64
	version uint64  // of the scheduled completion
	busy    float64 // core seconds used
	// contention is the factor of work while all cores are busy, and slow the present one,
	// between 1 and contention.
	contention, slow float64
	others           float64 // share of each core that other programs have
	slowness         float64 // factor of all work
	down             bool
}

// Weights of niceness 0 and 10, from the table of Linux's scheduler.
const (
	weightNormal = 1024
	weightNice10 = 110
)

// class holds the tasks with the same number of threads and the same weight. They progress
// at the same rate, so that one clock serves all of them.
type class struct {
	threads, weight float64
	clock           float64 // work done by a task that ran since the start
	rate            float64 // core seconds per second of one task
	tasks           taskHeap
}

type task struct {
	finish float64 // on the clock of its class
	seq    uint64
	done   func()
}

type taskHeap []task

func (h taskHeap) Len() int { return len(h) }
func (h taskHeap) Less(i, j int) bool {
	return h[i].finish < h[j].finish || h[i].finish == h[j].finish && h[i].seq < h[j].seq
}
func (h taskHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *taskHeap) Push(x any)   { *h = append(*h, x.(task)) }
func (h *taskHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = task{}
	*h = old[:len(old)-1]
	return t
}

// NewMachine returns a machine with a number of cores.
func NewMachine(l *Loop, cores float64) *Machine {
	return &Machine{loop: l, cores: cores, contention: 1, slow: 1, slowness: 1}
}

// Run does work, in core seconds, with a number of threads, and then calls done.
func (m *Machine) Run(work float64, threads int, nice bool, done func()) {
	if m.down {
		return // what ran on the machine is lost
	}
	m.advance()
	weight := float64(weightNormal)
	if nice {
		weight = weightNice10
	}
	c := m.class(float64(threads), weight*float64(threads))
	m.loop.seq++
	heap.Push(&c.tasks, task{c.clock + max(work, 0), m.loop.seq, done})
	m.share()
}

func (m *Machine) class(threads, weight float64) *class {
	for _, c := range m.classes {
		if c.threads == threads && c.weight == weight {
			return c
		}
	}
	c := &class{threads: threads, weight: weight}
	m.classes = append(m.classes, c)
	return c
}

// advance moves the clocks to the present.
func (m *Machine) advance() {
	dt := m.loop.now - m.updated
	m.updated = m.loop.now
	if dt <= 0 {
		return
	}
	for _, c := range m.classes {
		if n := len(c.tasks); n > 0 {
			c.clock += c.rate * dt * (1 - m.others) / m.slow
			m.busy += c.rate * dt * (1 - m.others) * float64(n)
		}
	}
}

// share computes the rates and schedules the next completion. A task whose share exceeds
// its threads has its threads, and the rest is shared by the others.
func (m *Machine) share() {
	free, weights := m.cores, 0.0
	for _, c := range m.classes {
		c.rate = -1
		weights += c.weight * float64(len(c.tasks))
	}
	for changed := true; changed; {
		changed = false
		for _, c := range m.classes {
			if n := float64(len(c.tasks)); n > 0 && c.rate < 0 && free*c.weight >= c.threads*weights {
				c.rate = c.threads
				free -= c.threads * n
				weights -= c.weight * n
				changed = true
			}
		}
	}
	used := 0.0
	for _, c := range m.classes {
		if len(c.tasks) == 0 {
			continue
		}
		if c.rate < 0 {
			c.rate = max(free, 0) * c.weight / weights
		}
		used += c.rate * float64(len(c.tasks))
	}
	m.slow = m.slowness
	if m.cores > 1 && used > 1 {
		m.slow *= 1 + (m.contention-1)*(used-1)/(m.cores-1)
	}
	next := -1.0
	for _, c := range m.classes {
		if len(c.tasks) > 0 && c.rate > 0 {
			if t := (c.tasks[0].finish - c.clock) / c.rate * m.slow / (1 - m.others); next < 0 || t < next {
				next = t
			}
		}
	}
	m.version++
	if next < 0 {
		return
	}
	version := m.version
	m.loop.After(next, func() {
		if m.version == version {
			m.complete()
		}
	})
}

// slowDown sets the factor of all work from now on.
func (m *Machine) slowDown(factor float64) {
	m.advance()
	m.slowness = factor
	m.share()
}

// complete ends the tasks whose work is done.
func (m *Machine) complete() {
	m.advance()
	// Late in a long simulation the least step of time is larger than what a task may have
	// left, which would never end.
	tiny := 1e-9 + m.loop.now*1e-15
	var done []func()
	for _, c := range m.classes {
		for len(c.tasks) > 0 && c.tasks[0].finish <= c.clock+tiny {
			done = append(done, heap.Pop(&c.tasks).(task).done)
		}
	}
	m.share()
	for _, f := range done {
		f()
	}
}

// Fail ends all tasks without calling done. Run does nothing until Recover.
func (m *Machine) Fail() {
	m.advance()
	for _, c := range m.classes {
		c.tasks = nil
	}
	m.version++
	m.down = true
}

// Recover makes a machine that has failed usable again.
func (m *Machine) Recover() {
	m.advance()
	m.down = false
}

// Busy returns the core seconds used so far.
func (m *Machine) Busy() float64 {
	m.advance()
	return m.busy
}

// Slots is a semaphore with a first-in, first-out wait queue, as
// golang.org/x/sync/semaphore has.
type Slots struct {
	free    int
	waiting []slotWaiter
}

type slotWaiter struct {
	n    int
	then func()
}

// Acquire calls then when n slots are free for it.
func (s *Slots) Acquire(n int, then func()) {
	if len(s.waiting) == 0 && s.free >= n {
		s.free -= n
		then()
		return
	}
	s.waiting = append(s.waiting, slotWaiter{n, then})
}

// TryAcquire takes n slots if they are free, and reports whether they were.
func (s *Slots) TryAcquire(n int) bool {
	if len(s.waiting) > 0 || s.free < n {
		return false
	}
	s.free -= n
	return true
}

// Release frees n slots.
func (s *Slots) Release(n int) {
	s.free += n
	for len(s.waiting) > 0 && s.free >= s.waiting[0].n {
		w := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.free -= w.n
		w.then()
	}
}

// Serial is a device that serves one request at a time in their order, such as a disk.
type Serial struct {
	loop *Loop
	free float64 // when the last request ends
	busy float64
}

// Do serves a request that takes a time, and calls done after it and a further delay.
func (s *Serial) Do(takes, delay float64, done func()) {
	now := s.loop.now
	s.free = max(s.free, now) + takes
	s.busy += takes
	s.loop.After(s.free-now+delay, done)
}
