package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime/multipart"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/deepmed/anomaly/bench/cluster/sim"
	"github.com/deepmed/anomaly/bench/internal/processes"
	"github.com/valyala/fasthttp"
)

// form is a request for a detection.
type form struct {
	contentType string
	body        []byte
}

func newForm(image []byte) (form, error) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	part, err := w.CreateFormFile("imageFile", "image")
	if err == nil {
		_, err = part.Write(image)
	}
	if err == nil {
		err = w.Close()
	}
	return form{w.FormDataContentType(), body.Bytes()}, err
}

// load is detections that clients send to services in turn.
type load struct {
	services []string // URLs
	models   []string // names
	forms    []form
	// machines are the processes of each service's machine, nil for all processes on one.
	machines [][]int
}

// observed is the result of a load.
type observed struct {
	times      []float64 // of the answered detections, in seconds, in the order of their answers
	seconds    float64   // from the first request to the last answer
	failed     int
	why        error
	clientWork float64 // CPU time of this process, in seconds
	samples    []sample
}

// sample is what each machine has done until a time after the start of a load.
type sample struct {
	at       float64   // in seconds
	work     []float64 // core seconds of the processes, and a share of this one's
	answered []int
}

func (o *observed) rate() float64 { return float64(len(o.times)) / o.seconds }

func (o *observed) quantile(p float64) float64 {
	if len(o.times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(o.times))
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}

func (o *observed) mean() float64 {
	sum := 0.0
	for _, t := range o.times {
		sum += t
	}
	return sum / float64(max(len(o.times), 1))
}

// loader sends the requests of a load.
type loader struct {
	load
	clients map[string]*fasthttp.HostClient
	mu      sync.Mutex
	out     observed
	// answered are the answers of each service.
	answered []int
}

func newLoader(l load) *loader {
	s := &loader{load: l, clients: map[string]*fasthttp.HostClient{}, answered: make([]int, len(l.services))}
	for _, url := range l.services {
		s.clients[url] = &fasthttp.HostClient{Addr: strings.TrimPrefix(url, "http://"), MaxConns: 4096, ReadTimeout: time.Minute, WriteTimeout: time.Minute}
	}
	return s
}

// send sends the i-th request, which was due at a time.
func (s *loader) send(i int, due time.Time) {
	url := s.services[i%len(s.services)]
	f := s.forms[i%len(s.forms)]
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.Header.SetMethod(http.MethodPost)
	req.SetRequestURI(url + "/models/" + s.models[i%len(s.models)] + "/detect")
	req.Header.SetContentType(f.contentType)
	req.SetBodyRaw(f.body)
	err := s.clients[url].Do(req, res)
	took := time.Since(due).Seconds()
	if err == nil && res.StatusCode() != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", res.StatusCode(), res.Body())
	}
	if err == nil {
		var v struct {
			Score *float64 `json:"reconstruction_error"`
		}
		if err = json.Unmarshal(res.Body(), &v); err == nil && v.Score == nil {
			err = fmt.Errorf("no score in %.200s", res.Body())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.out.failed++
		s.out.why = err
		return
	}
	s.out.times = append(s.out.times, took)
	s.answered[i%len(s.services)]++
}

// closedFor sends requests from a number of clients for some time, each of which waits for its
// answer.
func (l load) closedFor(ctx context.Context, clients int, lasts time.Duration) (*observed, error) {
	s := newLoader(l)
	var next atomic.Int64
	end := time.Now().Add(lasts)
	return s.watch(ctx, func(group *sync.WaitGroup) {
		for range clients {
			group.Go(func() {
				for ctx.Err() == nil && time.Now().Before(end) {
					s.send(int(next.Add(1))-1, time.Now())
				}
			})
		}
	})
}

// closed sends n requests from a number of clients, each of which waits for its answer.
func (l load) closed(ctx context.Context, clients, n int) (*observed, error) {
	s := newLoader(l)
	next := make(chan int, n)
	for i := range n {
		next <- i
	}
	close(next)
	return s.watch(ctx, func(group *sync.WaitGroup) {
		for range clients {
			group.Go(func() {
				for i := range next {
					if ctx.Err() != nil {
						return
					}
					s.send(i, time.Now())
				}
			})
		}
	})
}

// open sends a request at each of some times, in seconds, whether or not earlier ones were
// answered.
func (l load) open(ctx context.Context, arrivals []float64) (*observed, error) {
	s := newLoader(l)
	return s.watch(ctx, func(group *sync.WaitGroup) {
		began := time.Now()
		for i, t := range arrivals {
			due := began.Add(time.Duration(t * float64(time.Second)))
			time.Sleep(time.Until(due))
			if ctx.Err() != nil {
				return
			}
			group.Go(func() { s.send(i, due) })
		}
	})
}

// watch runs a load and measures the time and the work around it.
func (s *loader) watch(ctx context.Context, run func(*sync.WaitGroup)) (*observed, error) {
	work, began := ownWork(), time.Now()
	ended, sampled := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sampled)
		s.sample(began, ended)
	}()
	var group sync.WaitGroup
	run(&group)
	group.Wait()
	close(ended)
	<-sampled
	s.out.seconds = time.Since(began).Seconds()
	s.out.clientWork = ownWork() - work
	for _, c := range s.clients {
		c.CloseIdleConnections()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if len(s.out.times) == 0 {
		return nil, errors.Join(errors.New("no detection was answered"), s.out.why)
	}
	return &s.out, nil
}

// sample records what has been done at the start, at the end of each step, and at the end.
func (s *loader) sample(began time.Time, ended <-chan struct{}) {
	machines := s.machines
	if machines == nil {
		machines = [][]int{slices.DeleteFunc(tree(), func(pid int) bool { return pid == os.Getpid() })}
	}
	add := func() {
		x := sample{at: time.Since(began).Seconds()}
		for _, pids := range machines {
			x.work = append(x.work, processes.CPU(pids...).Seconds()+ownWork()/float64(len(machines)))
		}
		s.mu.Lock()
		x.answered = slices.Clone(s.answered)
		s.out.samples = append(s.out.samples, x)
		s.mu.Unlock()
	}
	step := sim.SlownessStep
	steps := time.NewTicker(time.Duration(step * float64(time.Second)))
	defer steps.Stop()
	for {
		add()
		select {
		case <-ended:
			add()
			return
		case <-steps.C:
		}
	}
}

// ownWork returns the CPU time of this process so far, in seconds.
func ownWork() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
