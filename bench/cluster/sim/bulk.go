package sim

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
	model        int
	began        float64
	cut          bool // all pieces are in the queue
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

// resultBytes is the size of a line of the result of a bulk job, for an image.
const resultBytes = 200

// worker is a process of `anomaly worker`.
type worker struct {
	c       *cluster
	index   int
	machine *Machine
	alive   bool
	life    int
	busy    bool // has a piece
	trains  bool
	models  lru
	// Those that are given to another worker when this one ends.
	piece    *piece
	jobs     []*bulkJob
	training *training
}

func newWorker(x *cluster, index int, m *Machine) *worker {
	return &worker{c: x, index: index, machine: m, alive: true, models: lru{room: x.CacheBytes}}
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

// submit is a client with a zip of images: a serving process stores it and publishes the
// work.
func (x *cluster) submit() {
	j := &bulkJob{images: x.JobImages, model: x.draws.model(), began: x.loop.now}
	j.pieces = (j.images + x.PieceImages - 1) / x.PieceImages
	bytes := float64(j.images) * x.Costs.ImageFile
	x.bulk.running++
	x.put(objectJobs, bytes, func() {
		x.publish(keysJobs, 1000, func() {
			x.publish(streamJobs, 0, func() {
				x.bulk.running--
				x.bulk.jobs = append(x.bulk.jobs, j)
				x.wakeWorkers()
			})
		})
	})
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
	if len(b.pieces) > 0 && !w.busy {
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

// coordinate reads a job's zip and stores its pieces, one after the other.
func (w *worker) coordinate(j *bulkJob) {
	if j.next >= j.images {
		j.cut = true
		w.join(j)
		return
	}
	n := min(w.c.PieceImages, j.images-j.next)
	bytes := float64(n) * w.c.Costs.ImageFile
	w.c.read(objectJobs, bytes, w.guard(func() {
		w.machine.Run(2*bytes*w.c.Costs.ByteWork, 1, false, w.guard(func() { // reading and writing it
			w.c.put(objectPieces, bytes, w.guard(func() {
				w.c.publish(streamPieces, 0, w.guard(func() {
					j.next += n
					w.c.bulk.pieces = append(w.c.bulk.pieces, &piece{job: j, images: n})
					w.c.wakeWorkers()
					w.coordinate(j)
				}))
			}))
		}))
	}))
}

// join ends a job whose pieces have been judged: it reads their results, and stores one.
func (w *worker) join(j *bulkJob) {
	if !j.cut || j.done < j.pieces {
		return
	}
	bytes := float64(j.images) * resultBytes
	w.c.read(objectPieces, bytes, w.guard(func() {
		w.c.put(objectJobs, bytes, w.guard(func() {
			w.c.publish(keysJobs, 1000, w.guard(func() {
				x := w.c
				if j.began >= x.Warmup {
					x.result.JobTime.Add(x.loop.now - j.began)
				}
				x.bulk.running--
				w.drop(j)
				w.look()
			}))
		}))
	}))
}

func (w *worker) drop(j *bulkJob) {
	for i, other := range w.jobs {
		if other == j {
			w.jobs = append(w.jobs[:i], w.jobs[i+1:]...)
			return
		}
	}
}

// judge judges the images of a piece, on all cores.
func (w *worker) judge(p *piece) {
	w.busy, w.piece = true, p
	x := w.c
	run := w.guard(func() {
		work := 0.0
		for range p.images {
			work += (x.Costs.Decode + x.Costs.Infer) * x.draws.factor()
		}
		left := x.Cores
		part := w.guard(func() {
			if left--; left > 0 {
				return
			}
			x.put(objectPieces, float64(p.images)*resultBytes, w.guard(func() { w.judged(p) }))
		})
		for range x.Cores {
			w.machine.Run(work/float64(x.Cores), 1, false, part)
		}
	})
	x.read(objectPieces, float64(p.images)*x.Costs.ImageFile, w.guard(func() {
		if w.models.has(p.job.model) {
			x.hit()
			run()
			return
		}
		x.loaded()
		x.read(objectModels, x.Costs.ModelFile, w.guard(func() {
			w.machine.Run(x.Costs.Load, 1, false, w.guard(func() {
				w.models.add(p.job.model, x.Costs.ModelMemory)
				run()
			}))
		}))
	}))
}

// judged ends a piece whose result is stored. A piece that was judged twice has one result.
func (w *worker) judged(p *piece) {
	x := w.c
	w.busy, w.piece = false, nil
	x.bulk.running--
	if !p.judged {
		p.judged = true
		if x.loop.now >= x.Warmup {
			x.result.Pieces++
			x.result.BulkImages += p.images
		}
		p.job.done++
		for _, other := range x.workers {
			if other.alive && containsJob(other.jobs, p.job) {
				other.join(p.job)
			}
		}
	}
	w.look()
}

func containsJob(list []*bulkJob, j *bulkJob) bool {
	for _, other := range list {
		if other == j {
			return true
		}
	}
	return false
}

// train trains a model on all cores, at a lower priority than detections.
func (w *worker) train(t *training) {
	w.trains, w.training = true, t
	x := w.c
	w.machine.Run(t.left, x.Cores, true, w.guard(func() {
		x.put(objectModels, x.Costs.ModelFile, w.guard(func() {
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
	w.alive = false
	w.life++
	w.machine.Fail()
	p, jobs, t := w.piece, w.jobs, w.training
	w.busy, w.trains, w.piece, w.jobs, w.training = false, false, nil, nil, nil
	w.models = lru{room: x.CacheBytes}
	x.loop.After(redelivery, func() {
		again := 0
		if p != nil {
			x.bulk.pieces = append([]*piece{p}, x.bulk.pieces...)
			again++
		}
		if t != nil {
			x.bulk.trainings = append([]*training{t}, x.bulk.trainings...)
			again++
		}
		x.bulk.jobs = append(jobs, x.bulk.jobs...)
		again += len(jobs)
		x.bulk.running -= again
		x.result.Redelivered += again
		x.wakeWorkers()
	})
	x.loop.After(seconds, func() {
		w.machine.Recover()
		w.alive = true
		w.look()
	})
}
