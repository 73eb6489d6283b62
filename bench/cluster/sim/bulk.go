package sim

import (
	"math"
	"slices"
)

// bulkState holds the jobs, their pieces and the trainings.
type bulkState struct {
	pieces               []*piece // the queue
	jobs                 []*bulkJob
	trainings            []*training
	running              int // pieces, jobs and trainings that a worker has
	stored, storedBefore float64
}

// waiting returns the number of pieces and trainings that have not ended.
func (b *bulkState) waiting() int { return len(b.pieces) + len(b.jobs) + len(b.trainings) + b.running }

// bulkJob is a job of kind detect.
type bulkJob struct {
	images, next int // next is the first image that is in no piece yet
	pieces, done int
	waiting      int // pieces that are stored without a result
	model        int
	began        float64
	accepted     float64 // when the client has the answer to the submission
	cut, storing bool    // all pieces are stored; one is being stored
	// ready is set when the coordinator has the zip, and joined when it has all results.
	ready, joined bool
}

type piece struct {
	job    *bulkJob
	images int
	judged bool // its result is stored
}

type training struct {
	began float64
	left  float64 // work, less what a checkpoint has saved
}

// pieceSlots is the number of pieces that a worker has at once.
const pieceSlots = 2

// resultBytes is the size of the line of one image in the results of a bulk job, and
// recordBytes is the size of a job's record.
const (
	resultBytes = 200
	recordBytes = 1000
)

// worker is a process of `anomaly worker`.
type worker struct {
	c       *cluster
	index   int
	machine *Machine
	alive   bool
	life    int
	trains  bool
	models  lru
	loading map[int][]func()
	judging Slots // one piece is judged at a time
	// pieces, jobs and training are in work: another worker does them when this one ends.
	pieces   []*piece
	jobs     []*bulkJob
	training *training
}

func newWorker(x *cluster, index int, m *Machine) *worker {
	w := &worker{c: x, index: index, machine: m, alive: true}
	w.reset()
	return w
}

// reset makes a worker as it is after its start.
func (w *worker) reset() {
	w.life++
	w.trains, w.pieces, w.jobs, w.training = false, nil, nil, nil
	w.models, w.loading, w.judging = lru{room: w.c.CacheBytes}, map[int][]func(){}, Slots{free: 1}
}

// startBulk schedules the bulk jobs and the trainings.
func (x *cluster) startBulk() {
	poisson := func(rate float64, do func()) {
		if rate <= 0 {
			return
		}
		var next func()
		next = func() {
			do()
			x.loop.After(x.draws.ExpFloat64()/rate, next)
		}
		x.loop.After(x.draws.ExpFloat64()/rate, next)
	}
	if x.BulkAtOnce {
		x.loop.After(0, x.submit)
	} else if x.BulkRate > 0 {
		poisson(x.BulkRate/float64(x.JobImages), x.submit)
	}
	poisson(x.Trainings, func() {
		x.bulk.trainings = append(x.bulk.trainings, &training{x.loop.now, x.Costs.Train})
		x.wakeWorkers()
	})
}

// submit is a client with a zip of images: a serving process writes it to a file, reads the
// model, stores both and the job's record, and publishes the work.
func (x *cluster) submit() {
	j := &bulkJob{images: x.JobImages, model: x.draws.model(), began: x.loop.now}
	j.pieces = (j.images + x.PieceImages - 1) / x.PieceImages
	bytes := float64(j.images) * x.Costs.ImageFile
	x.bulk.running++
	steps(func() {
		recorded := x.loop.now
		x.publish(x.front, streamJobs, 0, func() {
			j.accepted = x.loop.now
			x.loop.After(recorded+queuePause-x.loop.now, func() {
				x.bulk.running--
				x.bulk.jobs = append(x.bulk.jobs, j)
				x.wakeWorkers()
			})
		})
	},
		func(then func()) { x.front.Run(bytes*x.Costs.Upload, 1, false, then) },
		func(then func()) { x.read(x.front, objectModels, x.Costs.ModelFile, then) },
		func(then func()) { x.put(x.front, objectJobs, bytes, then) },
		func(then func()) { x.put(x.front, objectJobs, x.Costs.ModelFile, then) },
		func(then func()) { x.publish(x.front, keysJobs, recordBytes, then) })
}

// steps does steps one after the other, and then end.
func steps(end func(), list ...func(then func())) {
	if len(list) == 0 {
		end()
		return
	}
	list[0](func() { steps(end, list[1:]...) })
}

// wakeWorkers lets all workers look for work.
func (x *cluster) wakeWorkers() {
	for i := range x.workers {
		// Each begins with another one, so that the first is not always the coordinator.
		x.workers[(i+int(x.loop.count))%len(x.workers)].look()
	}
}

// look takes work that waits, as much as the worker may have.
func (w *worker) look() {
	b := &w.c.bulk
	if !w.alive {
		return
	}
	if len(b.jobs) > 0 && len(w.jobs) == 0 {
		j := b.jobs[0]
		b.jobs = b.jobs[1:]
		b.running++
		w.jobs = append(w.jobs, j)
		w.coordinate(j)
	}
	if len(b.trainings) > 0 && !w.trains {
		t := b.trainings[0]
		b.trainings = b.trainings[1:]
		b.running++
		w.train(t)
	}
	for len(b.pieces) > 0 && len(w.pieces) < pieceSlots {
		p := b.pieces[0]
		b.pieces = b.pieces[1:]
		b.running++
		w.judge(p)
	}
}

// guard returns a function that calls f if the worker has not ended meanwhile.
func (w *worker) guard(f func()) func() {
	life := w.life
	return func() {
		if w.life == life {
			f()
		}
	}
}

// window returns how many pieces of a job may be stored without a result: one more than all
// workers can have.
func (x *cluster) window() int { return min(max(len(x.workers)*pieceSlots+1, 3), 64) }

// coordinate takes a job's message, records that it runs, copies its zip to a file, looks
// for pieces and results of an earlier coordinator, and then stores its pieces.
func (w *worker) coordinate(j *bulkJob) {
	j.storing, j.ready, j.joined = false, false, false
	x, bytes := w.c, float64(j.images)*w.c.Costs.ImageFile
	steps(w.guard(func() {
		j.ready = true
		w.fill(j)
	}),
		func(then func()) { x.take(w.machine, streamJobs, 0, w.guard(then)) },
		func(then func()) { x.publish(w.machine, keysJobs, recordBytes, w.guard(then)) },
		func(then func()) { x.read(w.machine, objectJobs, bytes, w.guard(then)) },
		func(then func()) { w.machine.Run(bytes*x.Costs.Upload, 1, false, w.guard(then)) },
		func(then func()) { x.fetch(w.machine, streamPieces, 0, w.guard(then)) },
		func(then func()) { x.fetch(w.machine, streamResults, 0, w.guard(then)) })
}

// fill stores pieces up to the window, one after the other.
func (w *worker) fill(j *bulkJob) {
	if j.next >= j.images {
		j.cut = true
		w.join(j)
		return
	}
	if j.storing || j.waiting >= w.c.window() {
		return
	}
	n := min(w.c.PieceImages, j.images-j.next)
	bytes := float64(n) * w.c.Costs.ImageFile
	j.storing = true
	w.c.publish(w.machine, streamPieces, bytes, w.guard(func() {
		j.storing = false
		j.next += n
		j.waiting++
		w.c.bulk.pieces = append(w.c.bulk.pieces, &piece{job: j, images: n})
		w.c.wakeWorkers()
		w.fill(j)
	}))
}

// join ends a job whose pieces have been judged: it reads the result of each, and stores one.
func (w *worker) join(j *bulkJob) {
	if !j.cut || j.done < j.pieces || j.joined {
		return
	}
	j.joined = true
	x := w.c
	var list []func(then func())
	for range j.pieces {
		list = append(list, func(then func()) {
			x.fetch(w.machine, streamResults, float64(j.images)*resultBytes/float64(j.pieces), w.guard(then))
		})
	}
	list = append(list,
		func(then func()) {
			x.put(w.machine, objectJobs, float64(j.images)*resultBytes, w.guard(then))
		},
		func(then func()) { x.publish(w.machine, keysJobs, recordBytes, w.guard(then)) })
	steps(w.guard(func() {
		if j.began >= x.Warmup {
			x.result.JobTime.Add(j.seen(x.loop.now, x.Poll) - j.began)
		}
		x.bulk.running--
		w.jobs = slices.DeleteFunc(w.jobs, func(other *bulkJob) bool { return other == j })
		w.look()
	}), list...)
}

// seen returns when the client of a job that ends at a time sees that.
func (j *bulkJob) seen(at, poll float64) float64 {
	if poll <= 0 {
		return at
	}
	return j.accepted + math.Ceil((at-j.accepted)/poll)*poll
}

// load calls then when a model is loaded. Pieces for the same model wait for one load of
// the copy that is stored with their job.
func (w *worker) load(model int, then func()) {
	if w.models.has(model) {
		w.c.hit()
		then()
		return
	}
	waiting, running := w.loading[model]
	w.loading[model] = append(waiting, then)
	if running {
		return
	}
	x := w.c
	x.loaded()
	x.read(w.machine, objectJobs, x.Costs.ModelFile, w.guard(func() {
		w.machine.Run(x.Costs.Load, 1, false, w.guard(func() {
			w.models.add(model, x.Costs.ModelMemory)
			waiting := w.loading[model]
			delete(w.loading, model)
			for _, f := range waiting {
				f()
			}
		}))
	}))
}

// judge judges the images of a piece, on all threads.
func (w *worker) judge(p *piece) {
	w.pieces = append(w.pieces, p)
	x := w.c
	run := func() {
		work := 0.0
		for range p.images {
			work += (x.Costs.Decode + x.Costs.Infer) * x.draws.factor()
		}
		left := x.Threads
		part := w.guard(func() {
			if left--; left > 0 {
				return
			}
			w.judging.Release(1)
			x.publish(w.machine, streamResults, float64(p.images)*resultBytes, w.guard(func() { w.judged(p) }))
		})
		for range x.Threads {
			w.machine.Run(work/float64(x.Threads), 1, false, part)
		}
	}
	x.take(w.machine, streamPieces, float64(p.images)*x.Costs.ImageFile, w.guard(func() {
		w.load(p.job.model, func() { w.judging.Acquire(1, run) })
	}))
}

// judged ends a piece whose result is stored. A piece that was judged twice has one result.
func (w *worker) judged(p *piece) {
	x := w.c
	w.pieces = slices.DeleteFunc(w.pieces, func(other *piece) bool { return other == p })
	x.bulk.running--
	if !p.judged {
		p.judged = true
		if x.loop.now >= x.Warmup {
			x.result.Pieces++
			x.result.BulkImages += p.images
		}
		// The result is sent to the coordinator.
		x.loop.After(x.Costs.Message, func() {
			p.job.waiting--
			p.job.done++
			for _, other := range x.workers {
				if !p.job.ready || !other.alive || !slices.Contains(other.jobs, p.job) {
					continue
				}
				if p.job.cut {
					other.join(p.job)
				} else {
					other.fill(p.job)
				}
			}
		})
	}
	w.look()
}

// train trains a model on all threads, at a lower priority than detections.
func (w *worker) train(t *training) {
	w.trains, w.training = true, t
	x := w.c
	w.machine.Run(t.left, x.Threads, true, w.guard(func() {
		x.put(w.machine, objectModels, x.Costs.ModelFile, w.guard(func() {
			w.trains, w.training = false, nil
			x.bulk.running--
			if t.began >= x.Warmup {
				x.result.Trained++
				x.result.TrainTime.Add(x.loop.now - t.began)
			}
			w.look()
		}))
	}))
}

// fail ends a worker for some time. What it had is delivered again.
func (w *worker) fail(seconds float64) {
	x := w.c
	pieces, jobs, t := w.pieces, w.jobs, w.training
	w.alive = false
	w.reset()
	w.machine.Fail()
	again := func(n int) {
		x.bulk.running -= n
		x.result.Redelivered += n
		x.wakeWorkers()
	}
	x.loop.After(pieceRedelivery, func() {
		x.bulk.pieces = append(pieces, x.bulk.pieces...)
		again(len(pieces))
	})
	x.loop.After(jobRedelivery, func() {
		if t != nil {
			x.bulk.trainings = append([]*training{t}, x.bulk.trainings...)
			again(1)
		}
		x.bulk.jobs = append(jobs, x.bulk.jobs...)
		again(len(jobs))
	})
	x.loop.After(seconds, func() {
		w.machine.Recover()
		w.alive = true
		w.look()
	})
}
