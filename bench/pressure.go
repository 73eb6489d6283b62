package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// pressureRequests is the number of requests of a measurement, pressureImages the
// number of images of the concurrent training, which takes minutes at level 5.
const (
	pressureRequests = 200
	pressureImages   = 100
)

// pressure measures /detect with one client, and a training, alone and concurrently,
// for several priorities of the training.
func pressure(ctx context.Context, o options, _, dir string) error {
	images, err := realImages(o.tiles)
	if err != nil {
		return err
	}
	packed, err := zipped(images, pressureImages)
	if err != nil {
		return err
	}
	model, err := checkpoint(ctx, o, dir, 1)
	if err != nil {
		return err
	}
	kinds := []struct {
		name string
		args []string
	}{
		{"niceness 0", []string{"--training-niceness", "0"}},
		{"niceness 10 (default)", nil},
		{"niceness 19", []string{"--training-niceness", "19"}},
		{"niceness 10, 1 thread", []string{"--training-threads", "1"}},
	}
	type result struct{ p50, p99, busy50, busy99, steps, busySteps series }
	results := make([]result, len(kinds))
	for range max(o.rounds/2, 1) {
		for i, k := range kinds {
			s, err := startService(ctx, "ours", "bin/anomaly", append([]string{"serve", "--log-level", "error"}, k.args...)...)
			if err != nil {
				return err
			}
			r := &results[i]
			if err := s.pressed(ctx, model, packed, images, func(p50, p99, steps *float64, busy bool) {
				if busy {
					r.busy50, r.busy99, r.busySteps = append(r.busy50, *p50), append(r.busy99, *p99), append(r.busySteps, *steps)
				} else {
					r.p50, r.p99, r.steps = append(r.p50, *p50), append(r.p99, *p99), append(r.steps, *steps)
				}
			}); err != nil {
				s.stop()
				return err
			}
			s.stop()
		}
	}
	t := table("TRAINING AND /detect, 256 px", "p50 alone, ms", "p99 alone", "p50 busy, ms", "p99 busy", "steps/s alone", "steps/s busy")
	for i, k := range kinds {
		r := results[i]
		fmt.Fprintf(t, "%s\t%v\t%v\t%v\t%v\t%.2f\t%.2f\n", k.name, r.p50, r.p99, r.busy50, r.busy99, r.steps.median(), r.busySteps.median())
	}
	return t.Flush()
}

// pressed measures one service, alone and then busy, and calls found for each.
func (s *service) pressed(ctx context.Context, model, packed []byte, images [][]byte, found func(p50, p99, steps *float64, busy bool)) error {
	requests, err := newRequestSet("/detect", model, images)
	if err != nil {
		return err
	}
	detect := func() (p50, p99 float64, err error) {
		l := s.load(ctx, requests, 1, pressureRequests)
		if l.failed > 0 {
			err = fmt.Errorf("%d requests failed: %w", l.failed, l.why)
		}
		return l.times.at(0.5), l.times.at(0.99), err
	}
	if _, _, err := detect(); err != nil { // warm
		return err
	}
	p50, p99, err := detect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := s.post(ctx, "/train", map[string][]byte{"zipFile": packed}, map[string]string{"level": "5", "image_size": strconv.Itoa(trainedSide)})
		ended <- err
	}()
	defer func() {
		cancel()
		<-ended
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if n, err := s.steps(); err != nil || n > 2 {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("the training did not start")
		}
	}
	const alone = 8 * time.Second
	steps, err := s.stepRate(func() error { time.Sleep(alone); return nil })
	if err != nil {
		return err
	}
	found(&p50, &p99, &steps, false)
	steps, err = s.stepRate(func() (err error) { p50, p99, err = detect(); return err })
	if err != nil {
		return err
	}
	found(&p50, &p99, &steps, true)
	return nil
}

// stepRate returns the steps per second of the running training while f runs.
func (s *service) stepRate(f func() error) (float64, error) {
	before, err := s.steps()
	if err != nil {
		return 0, err
	}
	started := time.Now()
	if err := f(); err != nil {
		return 0, err
	}
	after, err := s.steps()
	return (after - before) / time.Since(started).Seconds(), err
}

// steps returns the number of steps that the running training has completed.
func (s *service) steps() (float64, error) {
	res, err := http.Get(s.url + "/metrics")
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "anomaly_training_step "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, errors.New("/metrics has no anomaly_training_step")
}
