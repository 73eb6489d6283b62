package sim

import "slices"

// serve is a process of `anomaly serve`.
type serve struct {
	c       *cluster
	index   int
	machine *Machine
	alive   bool
	known   bool // to be alive, by the others
	// life is a number that changes when the process ends, so that what belonged to the
	// earlier process is dropped.
	life int

	admitted   Slots
	waitingIn  int // detections that wait for admission
	processors Slots
	inFlight   int // images between their arrival and the end of their run
	models     lru
	loading    map[int][]func()
	queues     map[int]*batchQueue
}

func newServe(c *cluster, index int, m *Machine) *serve {
	s := &serve{c: c, index: index, machine: m, alive: true, known: true}
	s.reset()
	return s
}

func (s *serve) reset() {
	s.life++
	s.admitted = Slots{free: detectionsPerThread * s.c.Threads}
	s.processors = Slots{free: s.c.Threads}
	s.waitingIn, s.inFlight = 0, 0
	s.models = lru{room: s.c.CacheBytes}
	s.loading, s.queues = map[int][]func(){}, map[int]*batchQueue{}
}

// detection is an image on its way. Its functions are called once.
type detection struct {
	model    int
	factor   float64 // of its work
	began    float64
	answered func() // the client has the answer
	tries    int
	turn     int // modulo the number of processes, which one is asked
}

// detect serves a request of a client.
func (s *serve) detect(d *detection) {
	if s.waitingIn >= waitingDetections {
		s.c.reject(d)
		return
	}
	s.machine.Run(s.c.Costs.Receive*d.factor, 1, false, func() {
		s.waitingIn++
		s.admitted.Acquire(1, func() {
			s.waitingIn--
			s.judge(d, func() {
				s.machine.Run(s.c.Costs.Answer*d.factor, 1, false, func() {
					s.admitted.Release(1)
					s.c.loop.After(s.c.Costs.Wait, d.answered)
				})
			})
		})
	})
}

// judge runs an image through its model here or, if the model is not loaded, at an owner
// of the model.
func (s *serve) judge(d *detection, then func()) {
	if s.models.has(d.model) {
		s.c.hit()
		s.run(d, then)
		return
	}
	owners := s.c.owner(d.model)
	if len(owners) == 0 || slices.Contains(owners, s) {
		s.load(d.model, func() { s.run(d, then) })
		return
	}
	s.ask(d, owners, then)
}

// ask lets the first of some owners that has a free slot judge an image. If none has, or
// does not answer in time, this process loads the model itself.
func (s *serve) ask(d *detection, owners []*serve, then func()) {
	if len(owners) == 0 {
		s.load(d.model, func() { s.run(d, then) })
		return
	}
	s.c.forward()
	owner, answered, life := owners[0], false, owners[0].life
	answer := func(do func()) func() {
		return func() {
			if !answered {
				answered = true
				do()
			}
		}
	}
	s.c.request(s.machine, s.c.Costs.ImageFile, func() {
		if !owner.alive || owner.life != life {
			return // nobody takes the message
		}
		if !owner.admitted.TryAcquire(1) {
			s.c.loop.After(0, answer(func() { s.ask(d, owners[1:], then) }))
			return
		}
		owner.take(d.model, func() {
			owner.run(d, func() {
				if owner.life == life {
					owner.admitted.Release(1)
				}
				answer(then)()
			})
		})
	})
	mine := s.life
	s.c.loop.After(forwardTimeout, func() {
		if s.life == mine {
			answer(func() { s.load(d.model, func() { s.run(d, then) }) })()
		}
	})
}

// take calls then when the model is loaded.
func (s *serve) take(model int, then func()) {
	if s.models.has(model) {
		s.c.hit()
		then()
		return
	}
	s.load(model, then)
}

// load reads a model from the store. Several requests for the same model wait for one.
func (s *serve) load(model int, then func()) {
	if s.models.has(model) { // loaded meanwhile
		then()
		return
	}
	waiting, running := s.loading[model]
	s.loading[model] = append(waiting, then)
	if running {
		return
	}
	s.c.loaded()
	life := s.life
	s.c.read(s.machine, objectModels, s.c.Costs.ModelFile, func() {
		s.machine.Run(s.c.Costs.Load, 1, false, func() {
			if s.life != life {
				return
			}
			s.models.add(model, s.c.Costs.ModelMemory)
			waiting := s.loading[model]
			delete(s.loading, model)
			for _, f := range waiting {
				f()
			}
		})
	})
}

// run decodes an image and runs it in a batch.
func (s *serve) run(d *detection, then func()) {
	s.inFlight++
	q := s.queue(d.model)
	q.reserved++
	s.processors.Acquire(1, func() {
		s.machine.Run(s.c.Costs.Decode*d.factor, 1, false, func() {
			s.processors.Release(1)
			q.reserved--
			q.add(batchImage{d.factor, func() {
				s.inFlight--
				then()
			}})
		})
	})
}

func (s *serve) queue(model int) *batchQueue {
	q := s.queues[model]
	if q == nil {
		q = &batchQueue{s: s, model: model}
		s.queues[model] = q
	}
	return q
}

// batchQueue is the queue of one model, as inference.queue: workers take a fair share of
// what waits, and wait for images that are being decoded for up to the delay.
type batchQueue struct {
	s       *serve
	model   int
	waiting []batchImage
	// reserved are images that are being decoded; workers take batches, running run one.
	reserved, workers, running int
	collecting                 []*collector
}

type batchImage struct {
	factor float64
	done   func()
}

// collector is a worker that waits for images that are being decoded.
type collector struct{ ended bool }

func (q *batchQueue) add(i batchImage) {
	q.waiting = append(q.waiting, i)
	if q.workers < q.s.c.Threads {
		q.workers++
		q.collect()
	}
	q.wake()
}

// wake ends the waits that have an end: enough images wait, or none is being decoded.
func (q *batchQueue) wake() {
	if len(q.waiting) < q.s.c.BatchSize && q.reserved > 0 {
		return
	}
	waiting := q.collecting
	q.collecting = nil
	for _, c := range waiting {
		q.end(c)
	}
}

func (q *batchQueue) end(c *collector) {
	if !c.ended {
		c.ended = true
		q.take()
	}
}

// collect is a worker between two batches.
func (q *batchQueue) collect() {
	if q.s.c.BatchSize > 1 && q.s.c.BatchDelay > 0 && len(q.waiting) > 0 && len(q.waiting) < q.s.c.BatchSize && q.reserved > 0 {
		c := &collector{}
		q.collecting = append(q.collecting, c)
		q.s.c.loop.After(q.s.c.BatchDelay, func() { q.end(c) })
		return
	}
	q.take()
}

// take runs a batch of what waits, or ends the worker.
func (q *batchQueue) take() {
	s := q.s
	if len(q.waiting) == 0 {
		q.workers--
		return
	}
	threads := 1
	if s.inFlight <= 1 {
		threads = s.c.Threads
	}
	s.processors.Acquire(threads, func() {
		if len(q.waiting) == 0 {
			s.processors.Release(threads)
			q.workers--
			return
		}
		free := max(s.c.Threads-q.running, 1)
		n := min((len(q.waiting)+free-1)/free, max(s.c.BatchSize, 1))
		batch := append([]batchImage(nil), q.waiting[:n]...)
		q.waiting = q.waiting[n:]
		q.running++
		work := 0.0
		for _, i := range batch {
			work += s.c.Costs.Infer * i.factor
		}
		if threads > 1 {
			// All cores were busy in the measurement of AllThreads.
			work *= s.c.Costs.AllThreads * float64(threads) / s.machine.contention
		}
		s.machine.Run(work, threads, false, func() {
			s.processors.Release(threads)
			q.running--
			for _, i := range batch {
				i.done()
			}
			q.collect()
		})
	})
}

// lru is a cache with the least recently used model evicted first. The most recently used
// one stays whatever its size.
type lru struct {
	room, used  float64
	models      map[int]*lruEntry
	first, last *lruEntry // most and least recently used
}

type lruEntry struct {
	model      int
	bytes      float64
	prev, next *lruEntry
}

func (l *lru) has(model int) bool {
	e := l.models[model]
	if e == nil {
		return false
	}
	l.unlink(e)
	l.push(e)
	return true
}

func (l *lru) add(model int, bytes float64) {
	if l.has(model) {
		return
	}
	if l.models == nil {
		l.models = map[int]*lruEntry{}
	}
	e := &lruEntry{model: model, bytes: bytes}
	l.models[model] = e
	l.push(e)
	for l.used += bytes; l.used > l.room && l.last != l.first; {
		old := l.last
		l.unlink(old)
		delete(l.models, old.model)
		l.used -= old.bytes
	}
}

func (l *lru) push(e *lruEntry) {
	e.next, e.prev = l.first, nil
	if l.first != nil {
		l.first.prev = e
	}
	l.first = e
	if l.last == nil {
		l.last = e
	}
}

func (l *lru) unlink(e *lruEntry) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		l.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		l.last = e.prev
	}
	e.prev, e.next = nil, nil
}
