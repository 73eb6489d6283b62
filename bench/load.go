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

// requestSet is prepared requests of one path. The client shares the processors with
// the server it measures, so it must not spend time on building requests.
type requestSet struct {
	path        string
	contentType string
	bodies      [][]byte
	// expected is the expected anomaly score of each body; empty until learn.
	expected []float64
}

// mostBodies limits the memory of the bodies, each of which contains a model.
const mostBodies = 20

// boundary has the length of the random boundaries of common clients.
const boundary = "b0c1d2e3f4a5968778695a4b3c2d1e0f0a1b2c3d4e5f6978879a0b1c2d3e"

// newRequestSet builds forms with a model, omitted if nil, and one image each.
func newRequestSet(path string, model []byte, images [][]byte) (*requestSet, error) {
	q := &requestSet{path: path}
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
		q.contentType = form.FormDataContentType()
		q.bodies = append(q.bodies, body.Bytes())
	}
	return q, nil
}

// loaded is the result of a load.
type loaded struct {
	rate   float64 // requests per second
	times  series  // of each request, in milliseconds
	failed int
	why    error // the first failure
}

// tolerance is the permitted relative difference of a score: JPEG decoders and
// inference engines round differently.
const tolerance = 5e-3

// load sends requests from concurrent clients, over persistent connections if the
// server supports them.
func (s *service) load(ctx context.Context, q *requestSet, clients, requests int) loaded {
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

// ask sends one request and returns the body of the response.
func (q *requestSet) ask(client *fasthttp.HostClient, url string, i int) ([]byte, error) {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.Header.SetMethod(http.MethodPost)
	req.SetRequestURI(url + q.path)
	req.Header.SetContentType(q.contentType)
	req.SetBodyRaw(q.bodies[i])
	if err := client.Do(req, res); err != nil {
		return nil, err
	}
	if res.StatusCode() != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d: %.200s", q.path, res.StatusCode(), res.Body())
	}
	return bytes.Clone(res.Body()), nil
}

// check compares a response with the expected score.
func (q *requestSet) check(answer []byte, i int) error {
	v, err := verdict(answer)
	if err != nil || len(q.expected) == 0 {
		return err
	}
	if want := q.expected[i]; math.Abs(v-want) > tolerance*math.Abs(want) {
		return fmt.Errorf("%s: score %v, expected %v", q.path, v, want)
	}
	return nil
}

// verdict returns the anomaly score in a response of /detect.
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

// learn stores the scores that a service returns as the expected ones.
func (q *requestSet) learn(s *service) error {
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
