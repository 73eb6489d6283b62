package sim

import (
	"errors"
	"fmt"
	"slices"
)

// cluster is the state of a simulation.
type cluster struct {
	*Config
	loop     *Loop
	draws    *draws
	profile  profile
	shared   []*Machine // with Shared: one, or one of each core with Pinned
	front    *Machine   // where zips are received; it is not counted, and does not fail
	serves   []*serve
	workers  []*worker
	servers  []*server
	result   Result
	busy     usage // at the end of the warm-up
	inFlight map[*detection]*serve
	pending  int // detections without an answer
	turn     int
	bulk     bulkState
	owners   map[int][]*serve // by model, until a process ends or comes back
}

// usage is the busy time of the machines and disks of each kind.
type usage struct {
	serve, worker, server float64
	disks                 []float64
}

// Run simulates a cluster.
func Run(c Config) (Result, error) {
	if err := check(&c); err != nil {
		return Result{}, err
	}
	if c.Threads == 0 {
		c.Threads = c.Cores
	}
	x := &cluster{Config: &c, loop: &Loop{}, draws: newDraws(&c), profile: newProfile(&c), inFlight: map[*detection]*serve{}}
	x.build()
	x.loop.After(c.Warmup, func() {
		x.busy = x.usage()
		x.result = Result{}
		x.bulk.storedBefore = x.bulk.stored
	})
	if c.Loaded {
		x.fill()
	}
	x.arrivals()
	x.startBulk()
	x.idle()
	x.slow()
	for _, f := range c.Failures {
		x.loop.After(f.At, func() { x.fail(f) })
	}
	x.loop.Run(c.Seconds)
	return x.finish(), nil
}

func check(c *Config) error {
	switch {
	case c.Serve < 1 || c.Servers < 1 || c.Cores < 1 || c.ServerCores < 1 || c.Workers < 0:
		return errors.New("sim: a cluster needs a serving process, a NATS server and cores")
	case c.Replicas < 1 || c.Replicas > c.Servers:
		return fmt.Errorf("sim: %d replicas on %d servers", c.Replicas, c.Servers)
	case c.Seconds <= c.Warmup:
		return fmt.Errorf("sim: %v s with a warm-up of %v s", c.Seconds, c.Warmup)
	case c.Threads < 0 || c.Threads > c.Cores:
		return fmt.Errorf("sim: %d threads on %d cores", c.Threads, c.Cores)
	case c.Others < 0 || c.Others >= 1:
		return fmt.Errorf("sim: other programs take %v of a core", c.Others)
	case c.Idle > 0 && !c.Shared:
		return errors.New("sim: the work of idle processes needs a shared machine")
	case c.Pinned && (!c.Shared || c.Threads != 1):
		return errors.New("sim: only processes of one thread on a shared machine have a core each")
	case len(c.Slowness) > 0 && (!c.Shared || c.Pinned && len(c.Slowness) != c.Cores || !c.Pinned && len(c.Slowness) > 1):
		return fmt.Errorf("sim: the slowness of %d machines", len(c.Slowness))
	case c.Shared && len(c.Failures) > 0:
		return errors.New("sim: failures need machines of their own")
	case c.BulkRate > 0 && (c.JobImages < 1 || c.PieceImages < 1 || c.Workers < 1):
		return errors.New("sim: bulk jobs need workers, and sizes of jobs and pieces")
	case c.Trainings > 0 && c.Workers < 1:
		return errors.New("sim: trainings need workers")
	}
	return nil
}

// build makes the processes and their machines.
func (x *cluster) build() {
	fresh := func(cores int) *Machine {
		m := NewMachine(x.loop, float64(cores))
		m.others = x.Others
		if x.Costs.Contention > 0 {
			m.contention = x.Costs.Contention
		}
		return m
	}
	switch {
	case x.Pinned:
		for range x.Cores {
			x.shared = append(x.shared, fresh(1))
		}
	case x.Shared:
		x.shared = []*Machine{fresh(x.Cores)}
	}
	machine := func(i, cores int) *Machine {
		if x.Shared {
			return x.core(i)
		}
		return fresh(cores)
	}
	for i := range x.Serve {
		x.serves = append(x.serves, newServe(x, i, machine(i, x.Cores)))
	}
	x.front = machine(0, x.Cores)
	for i := range x.Workers {
		x.workers = append(x.workers, newWorker(x, i, machine(i, x.Cores)))
	}
	for i := range x.Servers {
		x.servers = append(x.servers, &server{machine: machine(i, x.ServerCores), disk: Serial{loop: x.loop}, alive: true})
	}
}

// core returns the machine of the i-th process of a kind, on the shared one.
func (x *cluster) core(i int) *Machine { return x.shared[i%len(x.shared)] }

// slow gives the machines the slowness of each step.
func (x *cluster) slow() {
	for i, factors := range x.Slowness {
		for step, factor := range factors {
			x.loop.After(float64(step)*SlownessStep, func() { x.shared[i].slowDown(factor) })
		}
	}
}

// fill loads the most used models of each process, as many as fit.
func (x *cluster) fill() {
	fit := max(int(x.CacheBytes/x.Costs.ModelMemory), 1)
	kept := make([][]int, len(x.serves))
	for k := range x.Models {
		for i, s := range x.serves {
			if o := x.owner(k); (len(o) == 0 || slices.Contains(o, s)) && len(kept[i]) < fit {
				kept[i] = append(kept[i], k)
			}
		}
	}
	for i, s := range x.serves {
		for _, k := range slices.Backward(kept[i]) { // the most used model last
			s.models.add(k, x.Costs.ModelMemory)
		}
	}
	for _, w := range x.workers {
		for k := min(fit, x.Models) - 1; k >= 0; k-- {
			w.models.add(k, x.Costs.ModelMemory)
		}
	}
}

// idleStep is the time between two pieces of the work of idle processes.
const idleStep = 0.005

// idle schedules the work of idle processes.
func (x *cluster) idle() {
	if x.Idle <= 0 {
		return
	}
	var next func()
	next = func() {
		for _, m := range x.shared {
			m.Run(x.Idle*idleStep/float64(len(x.shared)), 1, false, func() {})
		}
		x.loop.After(idleStep, next)
	}
	next()
}

// arrivals schedules the detections of clients.
func (x *cluster) arrivals() {
	switch {
	case x.Arrivals != nil:
		for _, t := range x.Arrivals {
			x.loop.After(t, func() { x.arrive(nil) })
		}
	case x.Clients > 0:
		for range x.Clients {
			var next func()
			next = func() { x.arrive(next) }
			x.loop.After(0, next)
		}
	case x.Rate > 0:
		// Arrivals at the highest rate are kept with the probability of the present rate.
		var next func()
		next = func() {
			if x.draws.Float64()*x.profile.most() < x.profile.at(x.loop.now) {
				x.arrive(nil)
			}
			x.loop.After(x.draws.ExpFloat64()/x.profile.most(), next)
		}
		x.loop.After(x.draws.ExpFloat64()/x.profile.most(), next)
	}
}

// arrive is a client with an image. then is called when it has the answer; it may be nil.
func (x *cluster) arrive(then func()) {
	d := &detection{model: x.draws.model(), factor: x.draws.factor(), began: x.loop.now, turn: x.turn}
	x.turn++
	x.pending++
	d.answered = func() {
		end := func() {
			if d.began >= x.Warmup {
				x.result.Detections++
				x.result.Latency.Add(x.loop.now - d.began)
				if d.began >= x.From && d.began < x.Until {
					x.result.Window.Add(x.loop.now - d.began)
				}
			}
			x.pending--
			delete(x.inFlight, d)
			if then != nil {
				then()
			}
		}
		if x.Shared { // half of the client's work is before the request
			x.core(d.turn).Run(x.Costs.Client/2, 1, false, end)
		} else {
			x.loop.After(x.network(0), end)
		}
	}
	if x.Shared {
		x.core(d.turn).Run(x.Costs.Client/2, 1, false, func() { x.send(d) })
	} else {
		x.loop.After(x.network(x.Costs.ImageFile), func() { x.send(d) })
	}
}

// network returns the time of a message between machines: half a millisecond, and a
// gigabit a second.
func (x *cluster) network(bytes float64) float64 { return 0.0005 + bytes*8/1e9 }

// send sends a detection to one of the serving processes that are believed to be alive. A
// process that has ended refuses the connection; another one is tried.
func (x *cluster) send(d *detection) {
	var known []*serve
	for _, s := range x.serves {
		if s.known {
			known = append(known, s)
		}
	}
	if len(known) == 0 {
		x.retry(d)
		return
	}
	s := known[d.turn%len(known)] // as a proxy does
	if !s.alive {
		x.retry(d)
		return
	}
	x.inFlight[d] = s
	s.detect(d)
}

// retry sends a detection again after a short time.
func (x *cluster) retry(d *detection) {
	x.result.Retried++
	d.tries++
	d.turn = x.turn // not the next process for all that the lost one had
	x.turn++
	x.loop.After(x.network(0), func() { x.send(d) })
}

func (x *cluster) reject(d *detection) {
	x.result.Rejected++
	if x.EndAtReject && x.loop.now > x.Warmup {
		x.loop.events = nil
	}
	x.pending--
	delete(x.inFlight, d)
}

func (x *cluster) hit()     { x.result.Hits++ }
func (x *cluster) loaded()  { x.result.Loads++ }
func (x *cluster) forward() { x.result.Forwards++ }

// owner returns the processes that keep a model, the highest random weight first, among
// the processes that are known to be alive. It returns none if models have no owners.
func (x *cluster) owner(model int) []*serve {
	if x.Owners < 1 {
		return nil
	}
	if x.owners == nil {
		x.owners = map[int][]*serve{}
	}
	list, ok := x.owners[model]
	if !ok {
		list = x.rank(model)
		x.owners[model] = list
	}
	return list
}

// rank returns the owners of a model, the highest weight first.
func (x *cluster) rank(model int) []*serve {
	list := make([]*serve, 0, x.Owners+1)
	for _, s := range x.serves {
		if !s.known {
			continue
		}
		i := len(list)
		for i > 0 && weight(model, s.index) > weight(model, list[i-1].index) {
			i--
		}
		if i < x.Owners {
			list = slices.Insert(list, i, s)
			list = list[:min(len(list), x.Owners)]
		}
	}
	return list
}

// weight returns the random weight of a process for a model (splitmix64).
func weight(model, process int) uint64 {
	z := uint64(model)<<32 | uint64(process)
	for range 2 {
		z += 0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
	}
	return z
}

// fail ends a process and starts it again later.
func (x *cluster) fail(f Failure) {
	switch f.Kind {
	case ServeProcess:
		s := x.serves[f.Index]
		s.alive = false
		s.machine.Fail()
		s.reset()
		var lost []*detection
		for d, at := range x.inFlight {
			if at == s {
				lost = append(lost, d)
			}
		}
		sortByTime(lost) // the order of a map is random
		for _, d := range lost {
			delete(x.inFlight, d)
			x.retry(d)
		}
		x.loop.After(detectedAfter, func() {
			s.known = s.alive
			x.owners = nil
		})
		x.loop.After(f.For, func() {
			s.machine.Recover()
			s.alive, s.known = true, true
			x.owners = nil
		})
	case WorkerProcess:
		x.workers[f.Index].fail(f.For)
	case ServerProcess:
		x.servers[f.Index].fail(x, f.For)
	}
}

// usage returns the busy times so far.
func (x *cluster) usage() usage {
	var u usage
	if x.Shared {
		for _, m := range x.shared {
			u.serve += m.Busy()
		}
	} else {
		for _, s := range x.serves {
			u.serve += s.machine.Busy()
		}
		for _, w := range x.workers {
			u.worker += w.machine.Busy()
		}
		for _, s := range x.servers {
			u.server += s.machine.Busy()
		}
	}
	for _, s := range x.servers {
		u.disks = append(u.disks, s.disk.busy)
	}
	return u
}

// finish completes the result.
func (x *cluster) finish() Result {
	r, u := x.result, x.usage()
	r.Seconds = x.Seconds - x.Warmup
	share := func(busy float64, machines, cores int) float64 {
		if machines == 0 {
			return 0
		}
		return busy / (r.Seconds * float64(machines*cores))
	}
	if x.Shared {
		r.ServeUse = share(u.serve-x.busy.serve, 1, x.Cores)
	} else {
		r.ServeUse = share(u.serve-x.busy.serve, x.Serve, x.Cores)
		r.WorkerUse = share(u.worker-x.busy.worker, x.Workers, x.Cores)
		r.ServerUse = share(u.server-x.busy.server, x.Servers, x.ServerCores)
	}
	for i, busy := range u.disks {
		r.DiskUse = max(r.DiskUse, (busy-x.busy.disks[i])/r.Seconds)
	}
	r.StoredBytes = x.bulk.stored - x.bulk.storedBefore
	r.Waiting = x.pending + x.bulk.waiting()
	r.Events = x.loop.count
	return r
}
