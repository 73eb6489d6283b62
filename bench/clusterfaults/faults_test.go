package clusterfaults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	faultLength = 30 * time.Second // of a stop and of a cut
	faultPause  = 12 * time.Second // between the end of a fault and the next
	restartWait = 2 * time.Second  // of a killed process
	outage      = 20 * time.Second // of all NATS servers
	sampleEvery = 5 * time.Second
	settleTime  = 6 * time.Minute // for the jobs that are left at the end
)

// fault is something that happens to a process, and how it is mended.
type fault struct {
	name   string
	length time.Duration
	begin  func()
	mend   func()
}

// event is a fault that happened.
type event struct {
	name     string
	at       time.Duration // since the beginning
	lasted   time.Duration
	answered time.Duration // longest time without an answer of any service, during the fault and the pause
	next     time.Duration // until the next job ended; 0 if none has until the next fault
}

// TestClusterFaults keeps a cluster of 3 NATS servers, 2 services and 3 workers busy for
// CLUSTER_FAULT_TIME while its processes are killed, stopped and cut off, one at a time, and
// compares all jobs with what was promised. It runs bin/anomaly; use `make cluster-faults`.
func TestClusterFaults(t *testing.T) {
	text := os.Getenv("CLUSTER_FAULT_TIME")
	if text == "" {
		t.Skip("CLUSTER_FAULT_TIME is not set; `make cluster-faults` sets it")
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	c := brokertest.Start(t, 3)
	program := binary(t)
	var services, workers []*process
	for i := range 2 {
		services = append(services, newProcess(t, c, program, "serve", i, "--log-level", "info", "--max-jobs", "100000"))
	}
	for i := range 3 {
		workers = append(workers, newProcess(t, c, program, "worker", i, "--log-level", "info", "--checkpoint-interval", "1s"))
	}
	all := slices.Concat(services, workers)
	for _, p := range all {
		if !p.ready(2 * time.Minute) {
			t.Fatalf("%s is not ready: %s", p.name, p.logTail())
		}
	}
	l := &load{t: t, client: newClient(services), forms: trainingForms(t), accepted: map[string]bool{}, ended: map[string]jobs.Job{}, cancelled: map[string]bool{}}
	l.measure(t.Context(), l.client)
	l.prepareImages(t.Context(), program)
	began := time.Now()
	l.last = began

	accepting, stopAccepting := context.WithTimeout(t.Context(), length)
	defer stopAccepting()
	settling, cancel := context.WithTimeout(t.Context(), length+settleTime)
	defer cancel()
	var clients sync.WaitGroup
	for i := range 2 {
		clients.Go(func() { l.submitter(accepting, settling, seed+uint64(i), l.forms) })
	}
	clients.Go(func() { l.submitter(accepting, settling, seed+100, []*form{l.images}) })
	clients.Go(func() { l.trainer(accepting, settling) })
	probe := newProbe(services)
	clients.Go(func() { probe.run(accepting) })
	samples := newSamples(c, all)
	clients.Go(func() { samples.run(accepting) })

	var events []event
	wait(accepting, faultPause)
	for n := 0; accepting.Err() == nil; n++ {
		f := nextFault(t, random, n, c, services, workers)
		e := event{name: f.name, at: time.Since(began)}
		probe.reset()
		start := time.Now()
		f.begin()
		wait(accepting, f.length)
		f.mend()
		e.lasted = time.Since(start)
		wait(accepting, faultPause)
		e.answered = probe.reset()
		e.next = l.firstEndAfter(start)
		events = append(events, e)
		t.Logf("%8s  %-34s lasted %-6s a service answered within %-7s next job after %s", e.at.Round(time.Second), e.name, e.lasted.Round(time.Second), e.answered.Round(10*time.Millisecond), e.next.Round(100*time.Millisecond))
	}
	for _, p := range all {
		p.mend()
	}
	clients.Wait()
	l.settled(settling)
	samples.flat(t)
	l.summary(t, events, length)
	if t.Failed() {
		for _, p := range all {
			t.Logf("log of %s:\n%s", p.name, p.logTail())
		}
	}
}

// wait waits, at most until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// nextFault returns the n-th fault. Each kind comes in turn, at a random process. The first
// service and the first worker are never killed, so that what they use can be followed.
func nextFault(t testing.TB, random *rand.Rand, n int, c *brokertest.Cluster, services, workers []*process) fault {
	worker, service := workers[random.IntN(len(workers))], services[random.IntN(len(services))]
	mortal := workers[1+random.IntN(len(workers)-1)]
	node := random.IntN(c.Len())
	nats := func(name string, i int, stop bool) fault {
		if stop {
			return fault{"stop " + c.Name(i) + name, faultLength, func() { c.Stop(i) }, func() { c.Cont(i) }}
		}
		return fault{"kill " + c.Name(i) + name, restartWait, func() { c.Kill(i) }, func() { c.Restart(i) }}
	}
	of := func(p *process, kind string) fault {
		switch kind {
		case "kill":
			return fault{"kill " + p.name, restartWait, p.kill, p.start}
		case "stop":
			return fault{"stop " + p.name, faultLength, func() { p.signal(syscall.SIGSTOP) }, func() { p.signal(syscall.SIGCONT) }}
		case "drop":
			return fault{"drop connections of " + p.name, restartWait, func() {
				for _, proxy := range p.proxies {
					proxy.Drop()
				}
			}, func() {}}
		}
		return fault{"cut off " + p.name, faultLength, p.cut, p.mend}
	}
	switch n % 13 {
	case 0:
		return of(mortal, "kill")
	case 1:
		return nats(", leader of the records", leaderOf(t, c, "KV_jobs"), false)
	case 2:
		return of(worker, "cut")
	case 3:
		return of(services[1], "kill")
	case 4:
		return nats(", leader of the messages", leaderOf(t, c, "jobs"), true)
	case 5:
		return of(worker, "stop")
	case 6:
		return nats("", node, false)
	case 7:
		return of(service, "cut")
	case 8:
		return of(mortal, "kill")
	case 9:
		return nats(", leader of the files", leaderOf(t, c, "OBJ_jobs"), true)
	case 10:
		return of(service, "stop")
	case 11:
		return of(worker, "drop")
	}
	return fault{"kill all NATS servers", outage, func() {
		for i := range c.Len() {
			c.Kill(i)
		}
	}, func() {
		for i := range c.Len() {
			c.Restart(i)
		}
	}}
}

// leaderOf returns the server that leads a stream, or 0.
func leaderOf(t testing.TB, c *brokertest.Cluster, stream string) int {
	t.Helper()
	conn, err := nats.Connect(c.URL(), nats.Timeout(2*time.Second))
	if err != nil {
		t.Logf("the leader of %s is not known: %v", stream, err)
		return 0
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		t.Logf("the leader of %s is not known: %v", stream, err)
		return 0
	}
	for i := range c.Len() {
		if info := s.CachedInfo().Cluster; info != nil && info.Leader == c.Name(i) {
			return i
		}
	}
	return 0
}

// probe measures the longest time in which no service answered.
type probe struct {
	services []*process
	http     http.Client
	mu       sync.Mutex
	last     time.Time
	longest  time.Duration
}

func newProbe(services []*process) *probe {
	return &probe{services: services, http: http.Client{Timeout: 3 * time.Second}, last: time.Now()}
}

// run asks the services for a job that does not exist, which the store must answer.
func (p *probe) run(ctx context.Context) {
	var asking sync.WaitGroup
	for _, s := range p.services {
		asking.Go(func() {
			for ctx.Err() == nil {
				res, err := p.http.Get("http://" + s.address + "/jobs/00000000000000000000000000000000")
				if err == nil {
					_ = res.Body.Close() // nothing of it is needed
					if res.StatusCode == http.StatusNotFound {
						p.answered()
					}
				}
				wait(ctx, 100*time.Millisecond)
			}
		})
	}
	asking.Wait()
}

func (p *probe) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.longest, p.last = max(p.longest, now.Sub(p.last)), now
}

// reset returns the longest time without an answer since the last call.
func (p *probe) reset() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	longest := max(p.longest, time.Since(p.last))
	p.longest = 0
	return longest
}

// summary prints what has happened.
func (l *load) summary(t testing.TB, events []event, length time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kinds := map[string]int{}
	var longest, next event
	for _, e := range events {
		kind, _, _ := strings.Cut(e.name, " ")
		kinds[kind]++
		if e.answered > longest.answered {
			longest = e
		}
		if e.next > next.next {
			next = e
		}
	}
	cancelled := 0
	for _, j := range l.ended {
		if j.State == jobs.Cancelled {
			cancelled++
		}
	}
	t.Logf("%s: %d faults (%s)", length, len(events), fmt.Sprint(kinds))
	t.Logf("%d jobs accepted, %d ended, %d of them cancelled, %d removed after their end, %d attempts beyond the first; %d images judged; %d trainings answered, %d lost with their service", len(l.accepted)+l.removed, len(l.ended)+l.removed, cancelled, l.removed, l.deaths, l.judged, l.trains, l.broken)
	t.Logf("longest time without an answer of any service: %s, at %q", longest.answered.Round(10*time.Millisecond), longest.name)
	t.Logf("longest time from a fault to the next end of a job: %s, at %q; longest time between two ends: %s", next.next.Round(100*time.Millisecond), next.name, l.longest.Round(100*time.Millisecond))
}
