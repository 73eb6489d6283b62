package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"mime/multipart"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
)

// questions are requests of one path, made before they are timed: the client
// shares the processors with the server that it measures, so it only writes what
// is there already and reads an answer.
type questions struct {
	path   string
	kind   string // of the bodies
	bodies [][]byte
	// expected are the errors that the answers must give, one a body; empty until
	// they are known.
	expected []float64
}

// mostBodies bounds the memory of the bodies, each of which holds a model.
const mostBodies = 20

// boundary is as long as those that clients draw at random.
const boundary = "b0c1d2e3f4a5968778695a4b3c2d1e0f0a1b2c3d4e5f6978879a0b1c2d3e"

// newQuestions makes forms of a model, left out when it is nil, and one image.
func newQuestions(path string, model []byte, images [][]byte) (*questions, error) {
	q := &questions{path: path}
	for _, image := range images[:min(len(images), mostBodies)] {
		var body bytes.Buffer
		form := multipart.NewWriter(&body)
		if err := form.SetBoundary(boundary); err != nil {
			return nil, err
		}
		for _, part := range []struct {
			name string
			data []byte
		}{{"modelFile", model}, {"imageFile", image}} {
			if part.data == nil {
				continue
			}
			w, err := form.CreateFormFile(part.name, part.name)
			if err == nil {
				_, err = w.Write(part.data)
			}
			if err != nil {
				return nil, err
			}
		}
		if err := form.Close(); err != nil {
			return nil, err
		}
		q.kind = form.FormDataContentType()
		q.bodies = append(q.bodies, body.Bytes())
	}
	return q, nil
}

// loaded is what a load came to.
type loaded struct {
	rate   float64 // requests a second
	times  series  // of each request, in milliseconds
	failed int
	why    error // the first failure
}

// tolerance is how far an answer may be from the expected one: JPEG decoders
// round differently, and so do the two engines.
const tolerance = 5e-3

// load sends so many requests from so many clients at once, over connections
// that stay where the server lets them.
func (s *service) load(ctx context.Context, q *questions, clients, requests int) loaded {
	client := &fasthttp.HostClient{Addr: strings.TrimPrefix(s.url, "http://"), MaxConns: clients,
		ReadTimeout: time.Minute, WriteTimeout: time.Minute}
	defer client.CloseIdleConnections()
	next := make(chan int, requests)
	for i := range requests {
		next <- i
	}
	close(next)
	var group sync.WaitGroup
	var mu sync.Mutex
	var l loaded
	began := time.Now()
	for range clients {
		group.Go(func() {
			for i := range next {
				if ctx.Err() != nil {
					return
				}
				asked := time.Now()
				answer, err := q.ask(client, s.url, i%len(q.bodies))
				took := time.Since(asked).Seconds() * 1e3
				if err == nil {
					err = q.check(answer, i%len(q.bodies))
				}
				mu.Lock()
				l.times = append(l.times, took)
				if err != nil {
					l.failed++
					if l.why == nil {
						l.why = err
					}
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	l.rate = float64(len(l.times)) / time.Since(began).Seconds()
	return l
}

// ask sends one request and gives the body of the answer.
func (q *questions) ask(client *fasthttp.HostClient, url string, i int) ([]byte, error) {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.Header.SetMethod(http.MethodPost)
	req.SetRequestURI(url + q.path)
	req.Header.SetContentType(q.kind)
	req.SetBodyRaw(q.bodies[i])
	if err := client.Do(req, res); err != nil {
		return nil, err
	}
	if res.StatusCode() != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d: %.200s", q.path, res.StatusCode(), res.Body())
	}
	return bytes.Clone(res.Body()), nil
}

// check holds an answer against the expected one.
func (q *questions) check(answer []byte, i int) error {
	v, err := verdict(answer)
	if err != nil || len(q.expected) == 0 {
		return err
	}
	if want := q.expected[i]; math.Abs(v-want) > tolerance*math.Abs(want) {
		return fmt.Errorf("%s: an error of %v, expected %v", q.path, v, want)
	}
	return nil
}

// verdict is the error that an answer of /detect gives.
func verdict(answer []byte) (float64, error) {
	var v struct {
		Error *float64 `json:"reconstruction_error"`
	}
	if err := json.Unmarshal(answer, &v); err != nil {
		return 0, err
	}
	if v.Error == nil {
		return 0, fmt.Errorf("no reconstruction_error in %.200s", answer)
	}
	return *v.Error, nil
}

// learn takes a service's answers for the expected ones.
func (q *questions) learn(s *service) error {
	client := &fasthttp.HostClient{Addr: strings.TrimPrefix(s.url, "http://")}
	defer client.CloseIdleConnections()
	q.expected = nil
	var expected []float64
	for i := range q.bodies {
		answer, err := q.ask(client, s.url, i)
		if err != nil {
			return err
		}
		v, err := verdict(answer)
		if err != nil {
			return err
		}
		expected = append(expected, v)
	}
	q.expected = expected
	return nil
}
