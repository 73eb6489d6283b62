package sim

import (
	"cmp"
	"math"
	"slices"
)

// The streams of the service in NATS. Each has a leader, and replicas on the servers that
// follow it.
const (
	objectModels = iota
	objectJobs
	streamPieces
	streamResults
	streamJobs
	keysJobs
)

// server is a NATS server with a disk of its own.
type server struct {
	machine *Machine
	disk    Serial
	alive   bool
	life    int // changes when the server ends
	// electing is when the streams that it led have another leader.
	electing float64
}

// fail ends a server for some time. The streams that it leads wait for an election.
func (s *server) fail(x *cluster, seconds float64) {
	s.alive = false
	s.life++
	s.machine.Fail()
	s.electing = x.loop.now + election
	x.loop.After(seconds, func() {
		s.machine.Recover()
		s.alive = true
	})
}

// replicas returns the servers of a stream that are alive, the leader first, and how long
// the stream has no leader yet.
func (x *cluster) replicas(stream int) (list []*server, wait float64) {
	for i := range x.Replicas {
		s := x.servers[(stream+i)%len(x.servers)]
		if s.alive {
			list = append(list, s)
		} else if i == 0 {
			wait = max(wait, s.electing-x.loop.now)
		}
	}
	return list, wait
}

// retryPause is the time between two tries to reach a stream without a leader.
const retryPause = 0.25

// publish sends a message from a machine to a stream and calls then when a majority of the
// replicas has it.
func (x *cluster) publish(from *Machine, stream int, bytes float64, then func()) {
	from.Run(x.Costs.PublisherWork+bytes*x.Costs.PublisherByteWork, 1, false, func() { x.store(stream, bytes, then) })
}

// store stores a message that has been sent.
func (x *cluster) store(stream int, bytes float64, then func()) {
	list, wait := x.replicas(stream)
	majority := x.Replicas/2 + 1
	if wait > 0 || len(list) < majority {
		x.loop.After(max(wait, retryPause), func() { x.store(stream, bytes, then) })
		return
	}
	x.bulk.stored += bytes
	work := x.Costs.PublishWork + bytes*x.Costs.WriteByteWork
	takes := x.Costs.Sync + bytes*x.Costs.WriteByte
	stored, done := 0, false
	answer := func() {
		if !done {
			done = true
			then()
		}
	}
	for _, s := range list {
		s.machine.Run(work, 1, false, func() {
			s.disk.Do(takes, x.Costs.Publish, func() {
				if stored++; stored == majority {
					answer()
				}
			})
		})
	}
	// Servers that end meanwhile never store it; the client publishes it again, with the
	// same message id.
	x.loop.After(publishTimeout, func() {
		if !done && stored < majority {
			done = true
			x.store(stream, bytes, then)
		}
	})
}

// publishTimeout is the time after which a publication without an answer is tried again.
const publishTimeout = 20

// put stores an object from a machine: it looks for an earlier one, and stores chunks, one
// after the other, and a description.
func (x *cluster) put(from *Machine, bucket int, bytes float64, then func()) {
	left := bytes
	var next func()
	next = func() {
		if left <= 0 {
			x.publish(from, bucket, 0, then)
			return
		}
		n := math.Min(left, chunkBytes)
		left -= n
		x.publish(from, bucket, n, next)
	}
	x.fetch(from, bucket, 0, next)
}

// read reads an object to a machine: its description, and its chunks one after the other.
func (x *cluster) read(to *Machine, bucket int, bytes float64, then func()) {
	left, first := bytes, true
	var next func()
	next = func() {
		if left <= 0 && !first {
			then()
			return
		}
		n := 0.0
		if !first {
			n = math.Min(left, chunkBytes)
			left -= n
		}
		first = false
		x.fetch(to, bucket, n, next)
	}
	next()
}

// take is fetch by a consumer: all replicas store who has the message, and that it is
// acknowledged.
func (x *cluster) take(to *Machine, stream int, bytes float64, then func()) {
	list, _ := x.replicas(stream)
	for _, s := range list {
		s.machine.Run(x.Costs.TakeWork, 1, false, func() { s.disk.Do(2*x.Costs.Sync, 0, func() {}) })
	}
	x.fetch(to, stream, bytes, then)
}

// fetch reads a message from the leader of a stream to a machine.
func (x *cluster) fetch(to *Machine, stream int, bytes float64, then func()) {
	list, wait := x.replicas(stream)
	if wait > 0 || len(list) == 0 {
		x.loop.After(max(wait, retryPause), func() { x.fetch(to, stream, bytes, then) })
		return
	}
	done, life := false, list[0].life
	list[0].machine.Run(x.Costs.FetchWork+bytes*x.Costs.ReadByteWork, 1, false, func() {
		x.loop.After(x.Costs.Fetch+bytes*x.Costs.ReadByte, func() {
			done = true
			to.Run(x.Costs.ReaderWork+bytes*x.Costs.ReaderByteWork, 1, false, then)
		})
	})
	x.loop.After(publishTimeout, func() {
		if !done && list[0].life != life {
			done = true
			x.fetch(to, stream, bytes, then)
		}
	})
}

// request sends a message of a number of bytes from a machine through a server.
func (x *cluster) request(from *Machine, bytes float64, arrived func()) {
	work := x.Costs.MessageWork + bytes*x.Costs.ByteWork
	from.Run(work, 1, false, func() {
		alive := slices.DeleteFunc(slices.Clone(x.servers), func(s *server) bool { return !s.alive })
		if len(alive) == 0 {
			return
		}
		alive[x.draws.IntN(len(alive))].machine.Run(work, 1, false, func() {
			x.loop.After(x.Costs.Message+bytes*x.Costs.Byte, arrived)
		})
	})
}

func sortByTime(list []*detection) {
	slices.SortFunc(list, func(a, b *detection) int {
		return cmp.Or(cmp.Compare(a.began, b.began), cmp.Compare(a.model, b.model), cmp.Compare(a.factor, b.factor))
	})
}
