package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
)

// soakForm returns the form of a small training. The name may be empty.
func (s *soak) soakForm(name string) form {
	parts := [][2]any{{"zipFile", s.few}, {"level", "1"}, {"image_size", "32"}}
	if name != "" {
		parts = append(parts, [2]any{"name", name})
	}
	return formOf(parts...)
}

// firstJob submits a job, waits until it has succeeded, and removes it.
func (s *soak) firstJob(ctx context.Context) error {
	status, body := s.ask(ctx, http.MethodPost, "job submitted", "/jobs", s.soakForm(""), http.StatusAccepted)
	var j jobs.Job
	if err := json.Unmarshal(body, &j); err != nil {
		return fmt.Errorf("the first job: status %d: %w", status, err)
	}
	if _, err := s.events(ctx, j.ID, 0, func(_ uint64, now jobs.Job) bool {
		j = now
		return true
	}); err != nil || j.State != jobs.Succeeded {
		return fmt.Errorf("the first job is %s: %v", j.State, err)
	}
	s.removeJobs(ctx)
	return nil
}

// submitter submits jobs one after another. It cancels one in four, and removes half of
// those that have ended.
func (s *soak) submitter(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		name := ""
		if r.IntN(2) == 0 {
			name = fmt.Sprintf("trained%d", r.IntN(2))
		}
		status, body := s.ask(ctx, http.MethodPost, "job submitted", "/jobs", s.soakForm(name), http.StatusAccepted)
		var j jobs.Job
		if status != http.StatusAccepted {
			continue
		}
		if err := json.Unmarshal(body, &j); err != nil || j.ID == "" || j.Name != name {
			s.fault("a job submitted: %v: %.300s", err, body)
			continue
		}
		s.follow(ctx, r, j.ID)
		s.ended(ctx, r, j.ID, name)
	}
}

// follow watches a job with several clients until it has ended. It cancels the job if the
// load ends.
func (s *soak) follow(ctx context.Context, r *rand.Rand, id string) {
	cancelled, stop := context.WithCancel(ctx)
	defer stop()
	if r.IntN(4) == 0 {
		cancelled, stop = context.WithTimeout(ctx, time.Duration(r.IntN(3000))*time.Millisecond)
		defer stop()
	}
	var watchers sync.WaitGroup
	for range 3 {
		own := rand.New(rand.NewPCG(r.Uint64(), 1))
		watchers.Go(func() { s.watch(ctx, own, id) })
	}
	watched := make(chan struct{})
	go func() {
		watchers.Wait()
		close(watched)
	}()
	select {
	case <-watched:
	case <-cancelled.Done():
		s.ask(ctx, http.MethodDelete, "job cancelled", "/jobs/"+id, form{}, http.StatusOK)
		<-watched
	}
}

// ended checks a job that has ended, and removes it in half of the cases.
func (s *soak) ended(ctx context.Context, r *rand.Rand, id, name string) {
	path := "/jobs/" + id
	// A job that ends while it is cancelled is removed.
	status, body := s.ask(ctx, http.MethodGet, "job described", path, form{}, http.StatusOK, http.StatusNotFound)
	if status != http.StatusOK {
		return
	}
	var j jobs.Job
	if err := json.Unmarshal(body, &j); err != nil || !j.State.Final() || j.State == jobs.Failed {
		s.fault("a job that has ended: %v: %.300s", err, body)
	}
	s.count("ended: "+string(j.State), 0)
	if j.State == jobs.Succeeded {
		// Another job may push it out of the store.
		status, body := s.ask(ctx, http.MethodGet, "model of a job", path+"/model", form{}, http.StatusOK, http.StatusNotFound)
		if sum := sha256.Sum256(body); status == http.StatusOK && (j.ModelSHA256 == nil || hex.EncodeToString(sum[:]) != *j.ModelSHA256) {
			s.fault("the model of the job %s has another SHA-256", id)
		}
		if name != "" {
			s.ask(ctx, http.MethodPost, "by the name of a job", "/models/"+name+"/detect", formOf([2]any{"imageFile", s.images[0]}), http.StatusOK)
		}
	}
	if r.IntN(2) == 0 {
		return
	}
	s.ask(ctx, http.MethodDelete, "job removed", path, form{}, http.StatusOK, http.StatusNotFound)
	for _, below := range []string{"", "/model", "/events"} {
		s.ask(ctx, http.MethodGet, "of a removed job", path+below, form{}, http.StatusNotFound)
	}
}

// order is the order of the states of a job that is tried once.
var order = map[jobs.State]int{jobs.Queued: 1, jobs.Running: 2, jobs.Succeeded: 3, jobs.Failed: 3, jobs.Cancelled: 3}

// watch reads the events of a job until it has ended or is removed. It hangs up now and
// then, and resumes after the last event.
func (s *soak) watch(ctx context.Context, r *rand.Rand, id string) {
	// As other requests, it may go on for a while after the load.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Minute)
	defer cancel()
	var last uint64
	var state jobs.State
	for !state.Final() {
		most := 1 + r.IntN(4) // events before it hangs up
		if r.IntN(2) == 0 {
			most = 1 << 30
		}
		status, err := s.events(ctx, id, last, func(revision uint64, j jobs.Job) bool {
			if revision <= last || order[j.State] < order[state] {
				s.fault("events of the job %s: %s, %d after %s, %d", id, j.State, revision, state, last)
			}
			last, state = revision, j.State
			most--
			return most > 0
		})
		s.count("events", status)
		switch {
		case err != nil:
			s.fault("events of the job %s: %v", id, err)
			return
		case status == http.StatusNotFound: // removed
			return
		case status != http.StatusOK:
			s.fault("events of the job %s: status %d", id, status)
			return
		}
	}
	status, err := s.events(ctx, id, last, func(revision uint64, j jobs.Job) bool {
		s.fault("the job %s has an event after its end: %s, %d", id, j.State, revision)
		return true
	})
	s.count("events after the end", status)
	if err != nil || status != http.StatusNoContent && status != http.StatusNotFound {
		s.fault("events of the job %s after its end: status %d, %v", id, status, err)
	}
}

// events calls found for each event of a stream, until it returns false: then it hangs up.
func (s *soak) events(ctx context.Context, id string, last uint64, found func(uint64, jobs.Job) bool) (status int, err error) {
	ctx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.service.url+"/jobs/"+id+"/events", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Last-Event-ID", strconv.FormatUint(last, 10))
	res, err := s.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	var revision uint64
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ": ")
		switch key {
		case "id":
			if revision, err = strconv.ParseUint(value, 10, 64); err != nil {
				return res.StatusCode, err
			}
		case "data":
			var j jobs.Job
			if err := json.Unmarshal([]byte(value), &j); err != nil {
				return res.StatusCode, err
			}
			if !found(revision, j) {
				return res.StatusCode, nil
			}
		}
	}
	return res.StatusCode, lines.Err()
}

// removeJobs removes all jobs, and returns their number. Each must have ended.
func (s *soak) removeJobs(ctx context.Context) int {
	_, body := s.ask(ctx, http.MethodGet, "jobs listed", "/jobs", form{}, http.StatusOK)
	var list struct{ Jobs []jobs.Job }
	if err := json.Unmarshal(body, &list); err != nil {
		s.fault("the jobs: %v: %.300s", err, body)
	}
	// The job of a /train is removed on its own.
	stored := slices.DeleteFunc(list.Jobs, func(j jobs.Job) bool { return j.Attached })
	for _, j := range stored {
		if !j.State.Final() {
			s.fault("the job %s is %s after the load", j.ID, j.State)
		}
		s.ask(ctx, http.MethodDelete, "job removed", "/jobs/"+j.ID, form{}, http.StatusOK)
	}
	return len(stored)
}
