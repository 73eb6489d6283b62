package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
)

// killRounds is how often TestServe_LosesNoJobWhenKilled ends the service. The variable
// ANOMALY_FAULTS sets it, and makes the wall clock jump.
func killRounds(t *testing.T) (rounds int, clock bool) {
	if text := os.Getenv("ANOMALY_FAULTS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n, true
	}
	return 3, false
}

// skipUnlessFaults skips a test that takes long, or depends on the speed of the machine,
// unless make faults runs.
func skipUnlessFaults(t *testing.T) {
	t.Helper()
	if os.Getenv("ANOMALY_FAULTS") == "" {
		t.Skip("make faults runs this test")
	}
}

// faults are what a test of faults has observed. Its fields may be used concurrently
// under the mutex.
type faults struct {
	t         *testing.T
	mu        sync.Mutex
	accepted  map[string]bool
	ended     map[string]jobs.Job
	deleted   map[string]bool // by a request that may have been answered or not
	cancelled map[string]bool // by a request that was answered
}

// submit submits a job, or two as long as few wait, until the service is gone.
func (f *faults) submit(s *serving, body *bytes.Buffer, kind string) {
	f.mu.Lock()
	n := 1
	if len(f.accepted)-len(f.ended) < 10 {
		n = 2
	}
	f.mu.Unlock()
	for range n {
		status, id := s.submitJob(body, kind)
		if status != http.StatusAccepted {
			return
		}
		f.mu.Lock()
		f.accepted[id] = true
		f.mu.Unlock()
	}
}

// watch checks all jobs until the service is gone.
func (f *faults) watch(s *serving) {
	for {
		list, ok := s.jobs()
		if !ok {
			return
		}
		f.mu.Lock()
		for _, j := range list {
			f.check(j)
		}
		f.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
}

// check fails the test if a job that has ended changes, or if its times are out of order.
// The mutex must be held.
func (f *faults) check(j jobs.Job) {
	before, was := f.ended[j.ID]
	if was && (j.State != before.State || !j.EndedAt.Equal(*before.EndedAt) || j.Attempts != before.Attempts) {
		f.t.Errorf("%s ended twice: %+v, then %+v", j.ID, before, j)
	}
	if j.State.Final() && !j.Attached {
		f.ended[j.ID] = j
	}
	if j.StartedAt != nil && j.StartedAt.Before(j.CreatedAt) || j.EndedAt != nil && (j.EndedAt.Before(j.CreatedAt) || j.StartedAt != nil && j.EndedAt.Before(*j.StartedAt)) {
		f.t.Errorf("%s was created at %s, started at %s and ended at %s", j.ID, j.CreatedAt, j.StartedAt, j.EndedAt)
	}
}

// cancel cancels a job, or removes it if it has ended meanwhile.
func (f *faults) cancel(s *serving) {
	f.mu.Lock()
	id := ""
	for one := range f.accepted {
		if _, ended := f.ended[one]; !ended && !f.deleted[one] {
			id = one
			break
		}
	}
	f.deleted[id] = id != ""
	f.mu.Unlock()
	if id == "" {
		return
	}
	r, err := http.NewRequest(http.MethodDelete, "http://"+s.address+"/jobs/"+id, nil)
	if err != nil {
		f.t.Error(err)
		return
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return // killed
	}
	defer res.Body.Close()
	var j jobs.Job
	if json.NewDecoder(res.Body).Decode(&j) == nil && j.State == jobs.Cancelled {
		f.mu.Lock()
		f.cancelled[id] = true
		f.mu.Unlock()
	}
}

// train sends a /train with the id of its job.
func (f *faults) train(s *serving, id string, body *bytes.Buffer, kind string) {
	r, err := http.NewRequest(http.MethodPost, "http://"+s.address+"/train", bytes.NewReader(body.Bytes()))
	if err != nil {
		f.t.Error(err)
		return
	}
	r.Header.Set("Content-Type", kind)
	r.Header.Set("X-Job-Id", id)
	if res, err := http.DefaultClient.Do(r); err == nil {
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
}

// The service ends at random moments of uploads, trainings and cancellations, by SIGKILL or
// by SIGTERM. Every job that was answered 202 must be there afterwards, and end exactly
// once, with its model.
func TestServe_LosesNoJobWhenKilled(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	data := t.TempDir()
	start := func() *serving {
		return serve(t, nil, "--addr", "127.0.0.1:0", "--data", data, "--grace", "1s", "--checkpoint-interval", "50ms")
	}
	rounds, jumps := killRounds(t)
	var clock *jumpingClock
	if jumps {
		clock = newJumpingClock(t)
		start = func() *serving {
			return clock.serve(t, "--addr", "127.0.0.1:0", "--data", data, "--grace", "1s", "--checkpoint-interval", "50ms")
		}
	}
	body, kind := trainForm(t, normals(t, 2), map[string]string{"level": "1", "image_size": "16"})
	f := &faults{t: t, accepted: map[string]bool{}, ended: map[string]jobs.Job{}, deleted: map[string]bool{}, cancelled: map[string]bool{}}
	kills, terms := 0, 0
	for round := range rounds {
		s := start()
		var clients sync.WaitGroup
		for range 2 {
			clients.Go(func() { f.submit(s, body, kind) })
		}
		clients.Go(func() { f.watch(s) })
		clients.Go(func() { f.train(s, fmt.Sprintf("attached-%d", round), body, kind) })
		before, after := random.IntN(1000), random.IntN(1000)
		time.Sleep(time.Duration(before) * time.Millisecond)
		if random.IntN(3) == 0 {
			clients.Go(func() { f.cancel(s) })
		}
		jump := time.Duration(0)
		if clock != nil {
			// Within half of --job-age, after which jobs are removed.
			jump = time.Duration(random.Int64N(int64(28*24*time.Hour))) - 14*24*time.Hour
			clock.set(t, jump)
		}
		time.Sleep(time.Duration(after) * time.Millisecond)
		if random.IntN(5) == 0 {
			s.stop(t, syscall.SIGTERM)
			terms++
		} else {
			s.kill(t)
			kills++
		}
		clients.Wait()
		t.Logf("round %d: the clock is off by %s; %d jobs accepted, %d ended, %d cancelled", round, jump.Truncate(time.Hour), len(f.accepted), len(f.ended), len(f.cancelled))
	}
	s := start()
	var list []jobs.Job
	for left := -1; left != 0; {
		before := left
		eventually(t, "another job has ended", func() bool {
			list, _ = s.jobs()
			left = 0
			for _, j := range list {
				if !j.State.Final() {
					left++
				}
			}
			return len(list) > 0 && left != before
		})
	}
	states := map[jobs.State]int{}
	for _, j := range list {
		f.check(j)
		states[j.State]++
		if !f.accepted[j.ID] && j.Attached {
			t.Errorf("the job of a /train has survived: %+v", j)
		}
		delete(f.accepted, j.ID)
		switch j.State {
		case jobs.Succeeded:
			s.checkModel(t, j)
		case jobs.Cancelled:
			if !f.deleted[j.ID] {
				t.Errorf("nobody has cancelled %+v", j)
			}
		default: // a job that runs during three kills has failed for that reason
			if j.Error == nil || !strings.Contains(*j.Error, "3 times") {
				t.Errorf("%+v", j)
			}
		}
		if f.cancelled[j.ID] && j.State != jobs.Cancelled {
			t.Errorf("%s is %s after its cancellation", j.ID, j.State)
		}
	}
	for id := range f.accepted {
		if !f.deleted[id] || f.cancelled[id] { // one that had ended was removed
			t.Errorf("%s is lost", id)
		}
	}
	t.Logf("%d kills, %d SIGTERM; at the end %v", kills, terms, states)
}

// checkModel fails the test unless the model of a job has the job's hash.
func (s *serving) checkModel(t *testing.T, j jobs.Job) {
	t.Helper()
	res, err := http.Get("http://" + s.address + "/jobs/" + j.ID + "/model")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	model, err := io.ReadAll(res.Body)
	if sum := sha256.Sum256(model); err != nil || res.StatusCode != 200 || hex.EncodeToString(sum[:]) != *j.ModelSHA256 {
		t.Errorf("the model of %s: status %d, %d bytes, %v", j.ID, res.StatusCode, len(model), err)
	}
}

func TestServe_LosesNoJobOnAFullDisk(t *testing.T) {
	skipUnlessFaults(t)
	data := t.TempDir()
	if err := syscall.Mount("none", data, "tmpfs", 0, "size=100m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(data, 0) })
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--data", data)
	long, kind := trainForm(t, normals(t, 20), map[string]string{"level": "5", "image_size": "128"})
	accepted := map[string]bool{}
	for range 16 {
		status, id := s.submitJob(long, kind)
		if status != http.StatusAccepted {
			t.Fatal(status)
		}
		accepted[id] = true
	}
	filler, err := os.Create(filepath.Join(data, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := filler.Write(make([]byte, 100<<20)); err == nil {
		t.Fatal("the disk is not full")
	}
	filler.Close()
	if status, _ := s.submitJob(long, kind); status != http.StatusInsufficientStorage {
		t.Errorf("status %d with a full disk", status)
	}
	// Each cancellation writes a record, until one fails.
	cancelled := map[string]bool{}
	failed := false
	for id := range accepted {
		if failed = s.cancelJob(t, id) != http.StatusOK; failed {
			break
		}
		cancelled[id] = true
	}
	if !failed {
		t.Error("the disk is full and everything was written")
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	if took := s.stop(t, syscall.SIGTERM); took > 45*time.Second {
		t.Errorf("the shutdown took %s", took)
	}
	s = serve(t, nil, "--addr", "127.0.0.1:0", "--data", data)
	list, ok := s.jobs()
	if !ok || len(list) != len(accepted) {
		t.Errorf("%d jobs, expected %d", len(list), len(accepted))
	}
	for _, j := range list {
		if !accepted[j.ID] || cancelled[j.ID] && j.State != jobs.Cancelled {
			t.Errorf("%+v", j)
		}
		s.cancelJob(t, j.ID)
	}
	short, kind := trainForm(t, normals(t, 2), map[string]string{"level": "1", "image_size": "16"})
	status, id := s.submitJob(short, kind)
	if status != http.StatusAccepted {
		t.Fatalf("status %d", status)
	}
	eventually(t, "a job succeeds", func() bool {
		var j jobs.Job
		return s.getJSON("/jobs/"+id, &j) == http.StatusOK && j.State == jobs.Succeeded
	})
}

// A job that is killed in its epochs, twice, ends with the same model as one that is not.
func TestServe_ContinuesATrainingThatWasKilled(t *testing.T) {
	skipUnlessFaults(t)
	data := t.TempDir()
	start := func() *serving {
		return serve(t, nil, "--addr", "127.0.0.1:0", "--data", data, "--checkpoint-interval", "1ms")
	}
	s := start()
	// A hundred short epochs: progress is written once a second.
	body, kind := trainForm(t, normals(t, 12), map[string]string{"level": "5", "image_size": "128"})
	submit := func() string {
		status, id := s.submitJob(body, kind)
		if status != http.StatusAccepted {
			t.Fatal(status)
		}
		return id
	}
	ends := func(id string) (j jobs.Job) {
		eventually(t, "the job has ended", func() bool { return s.getJSON("/jobs/"+id, &j) == http.StatusOK && j.State.Final() })
		if j.State != jobs.Succeeded {
			t.Fatalf("%+v, %v", j, *j.Error)
		}
		return j
	}
	want := ends(submit())
	id := submit()
	epoch := 0
	for range 2 {
		var j jobs.Job
		eventually(t, "the job has done an epoch", func() bool {
			if s.getJSON("/jobs/"+id, &j) == http.StatusOK && j.Progress.Epoch > 0 && j.Progress.Epoch < epoch {
				t.Errorf("the training is in epoch %d again after epoch %d", j.Progress.Epoch, epoch)
			}
			return j.State == jobs.Running && j.Progress.Epoch > epoch+1
		})
		s.kill(t)
		epoch = j.Progress.Epoch
		s = start()
	}
	got := ends(id)
	if got.Attempts != 3 || *got.ModelSHA256 != *want.ModelSHA256 || !slices.Equal(got.Losses, want.Losses) {
		t.Errorf("%d attempts, model %s, expected %s", got.Attempts, *got.ModelSHA256, *want.ModelSHA256)
	}
	if strings.Contains(s.log.String(), "checkpoint") {
		t.Errorf("%s", s.log)
	}
}
