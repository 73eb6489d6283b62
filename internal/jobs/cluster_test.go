package jobs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
)

// join opens the queue of a cluster as another process does, until the test ends.
func join(t testing.TB, url string) *Queue {
	t.Helper()
	return joinBy(t, brokertest.Open(t, url, nil))
}

// joinBy is join with a connection.
func joinBy(t testing.TB, b *broker.Broker) *Queue {
	t.Helper()
	q, err := Open(t.Context(), b, Options{MaxJobs: 100, MaxBytes: 10 << 30, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	q.ackWait, q.heartbeat = 2*time.Second, 200*time.Millisecond
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	return q
}

// slow is a worker whose model is a text. Its jobs end when release is closed, whether they
// are stopped or not, so that it must be kept from changing a job that it has lost.
func slow(begun chan<- Job, release <-chan struct{}, text string) Worker {
	return Worker{Run: func(_ context.Context, t *Task) (Result, error) {
		begun <- t.Job
		<-release
		return Result{Model: strings.NewReader(text)}, nil
	}}
}

func TestCluster_RunsAJobOnAnotherNode(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	j := submit(t, a, "abc")
	if got, err := b.Get(j.ID); err != nil || got.ID != j.ID {
		t.Fatalf("the other node has not the job at once: %+v, %v", got, err)
	}
	if _, err := b.Get("no.such>job*"); !errors.Is(err, ErrUnknown) {
		t.Errorf("an id that is no key: %v", err)
	}
	end := run(b, double)
	defer end()
	until(t, a, j.ID, Succeeded)
	late := join(t, s.URL())
	for name, q := range map[string]*Queue{"submitting": a, "running": b, "late": late} {
		if got := modelOf(t, q, j.ID); got != "abcabc" {
			t.Errorf("the %s node has the model %q", name, got)
		}
	}
	if _, removed, err := late.Delete(t.Context(), j.ID); err != nil || !removed {
		t.Fatal(removed, err)
	}
	soon(t, "a removed job is gone everywhere", func() bool {
		_, err := a.Get(j.ID)
		return errors.Is(err, ErrUnknown)
	})
}

// soon waits until something is true.
func soon(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 200 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("not true after 10 s: %s", what)
}

func TestCluster_StopsAJobThatAnotherNodeCancels(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	begun := make(chan Job)
	end := run(b, block(begun))
	defer end()
	j := submit(t, a, "abc")
	<-begun
	if got, removed, err := a.Delete(t.Context(), j.ID); err != nil || removed || got.State != Cancelled {
		t.Fatalf("%+v, %t, %v", got, removed, err)
	}
	next := submit(t, a, "def")
	select {
	case got := <-begun:
		if got.ID != next.ID {
			t.Errorf("%s runs", got.ID)
		}
	case <-time.After(20 * time.Second):
		t.Error("the cancelled job was not stopped")
	}
}

// A node that is cut off while it runs a job must change neither the job nor its model
// afterwards.
func TestCluster_FencesANodeThatWasCutOff(t *testing.T) {
	s := brokertest.InProcess(t)
	proxy := brokertest.NewProxy(t, strings.TrimPrefix(s.URL(), "nats://"))
	b := join(t, s.URL())
	a := join(t, "nats://"+proxy.Address())
	begun, release := make(chan Job, 1), make(chan struct{})
	endA := run(a, slow(begun, release, "of the lost node"))
	j := submit(t, b, "abc")
	<-begun
	proxy.Cut()
	endB := run(b, double)
	defer endB()
	until(t, b, j.ID, Succeeded)
	close(release)
	proxy.Mend()
	time.Sleep(2 * time.Second) // the lost node goes on
	endA()
	got, err := b.Get(j.ID)
	if err != nil || got.State != Succeeded || got.Attempts != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if m := modelOf(t, b, j.ID); m != "abcabc" {
		t.Errorf("the model is %q", m)
	}
	soon(t, "only the model is stored", func() bool {
		names, err := b.files.List(t.Context(), j.ID+"/")
		return err == nil && len(names) == 1
	})
}

func TestCluster_TakesOverTheJobOfAKilledNode(t *testing.T) {
	s := brokertest.InProcess(t)
	b := join(t, s.URL())
	dying, err := broker.Open(t.Context(), broker.Options{URL: s.URL()})
	if err != nil {
		t.Fatal(err)
	}
	a := joinBy(t, dying)
	begun, release := make(chan Job, 1), make(chan struct{})
	endA := run(a, slow(begun, release, "of the dead node"))
	j := submit(t, b, "abc")
	<-begun
	dying.Conn.Close() // it says nothing more
	endB := run(b, double)
	defer endB()
	got := until(t, b, j.ID, Succeeded)
	if got.Attempts != 2 || b.jobs[j.ID].record.Deaths != 1 {
		t.Errorf("%+v, deaths %d", got, b.jobs[j.ID].record.Deaths)
	}
	close(release)
	endA()
}

// A message that comes again although its runner lives must not begin a second attempt.
func TestCluster_LeavesAJobToItsRunnerThatLives(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	a.ackWait, b.ackWait = time.Second, time.Second
	a.heartbeat = time.Hour // the servers believe that it is gone
	begun, release := make(chan Job, 1), make(chan struct{})
	endA := run(a, slow(begun, release, "the model"))
	defer endA()
	j := submit(t, a, "abc")
	<-begun
	endB := run(b, double)
	defer endB()
	time.Sleep(3 * time.Second)
	close(release)
	if got := until(t, b, j.ID, Succeeded); got.Attempts != 1 {
		t.Errorf("%+v", got)
	}
	if m := modelOf(t, b, j.ID); m != "the model" {
		t.Errorf("the model is %q", m)
	}
}

func TestCluster_GoesOnWhenTheServersAreBack(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	begun, release := make(chan Job, 1), make(chan struct{})
	end := run(b, slow(begun, release, "the model"))
	defer end()
	j := submit(t, a, "abc")
	<-begun
	s.Stop()
	close(release) // the result is ready while there is no server
	time.Sleep(time.Second)
	s.Start()
	if got := until(t, a, j.ID, Succeeded); got.Attempts != 1 {
		t.Errorf("%+v", got)
	}
	if m := modelOf(t, a, j.ID); m != "the model" {
		t.Errorf("the model is %q", m)
	}
	next := submit(t, a, "def")
	until(t, a, next.ID, Succeeded)
}

func TestCluster_ContinuesFromACheckpointOfAnotherNode(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	saved := make(chan error, 1)
	endA := run(a, Worker{Run: func(ctx context.Context, t *Task) (Result, error) {
		_, err := t.LoadCheckpoint("state")
		if !errors.Is(err, fs.ErrNotExist) {
			saved <- err
		} else if err = t.SaveCheckpoint("state", []byte("first")); err != nil {
			saved <- err
		} else {
			saved <- t.SaveCheckpoint("state", []byte("second"))
		}
		<-ctx.Done()
		return Result{}, context.Cause(ctx)
	}})
	j := submit(t, a, "abc")
	if err := <-saved; err != nil {
		t.Fatal(err)
	}
	endA() // gives the job back
	endB := run(b, Worker{Run: func(_ context.Context, t *Task) (Result, error) {
		data, err := t.LoadCheckpoint("state")
		return Result{Model: strings.NewReader(string(data))}, err
	}})
	defer endB()
	until(t, a, j.ID, Succeeded)
	if m := modelOf(t, a, j.ID); m != "second" {
		t.Errorf("the model is %q", m)
	}
	soon(t, "the checkpoint is removed", func() bool {
		names, err := a.saved.List(t.Context(), "")
		return err == nil && len(names) == 0
	})
}

func TestCluster_DeliversACallbackFromOneNode(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	delivered := make(chan string, 10)
	for _, q := range []*Queue{a, b} {
		wg.Go(func() {
			q.Notify(ctx, func(_ context.Context, _ string, j Job) error {
				delivered <- j.ID
				return nil
			})
		})
	}
	end := run(b, double)
	defer end()
	r := upload("abc")
	r.Callback = "http://example.org/"
	j, err := a.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case id := <-delivered:
		if id != j.ID {
			t.Errorf("%s was delivered", id)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no callback was delivered")
	}
	time.Sleep(time.Second)
	if n := len(delivered); n != 0 {
		t.Errorf("%d more were delivered", n)
	}
}

func TestCluster_RunsTheJobsOfEachKindByItsWorker(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	end := run(b, Worker{Kind: "detect", Parallel: 2, Run: func(ctx context.Context, t *Task) (Result, error) {
		c, err := t.Open(ctx, "zipFile")
		return Result{Results: c}, err
	}})
	defer end()
	training := submit(t, a, "abc")
	r := upload("results")
	r.Kind = "detect"
	j, err := a.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	got := until(t, a, j.ID, Succeeded)
	if got.ModelSHA256 != nil || got.ResultsSHA256 == nil {
		t.Errorf("%+v", got)
	}
	c, err := a.Results(t.Context(), j.ID)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(c); err != nil || string(data) != "results" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := a.Model(t.Context(), j.ID); !errors.Is(err, ErrNoModel) {
		t.Errorf("a model of a job without one: %v", err)
	}
	if got, _ := a.Get(training.ID); got.State != Queued {
		t.Errorf("the training is %s without a worker of its kind", got.State)
	}
}

// A client that has heard of the end of a job from one node may ask another for its model.
func TestCluster_ReturnsTheModelBeforeTheNodeHasHeardOfTheEnd(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	j := submit(t, a, "abc")
	a.endClean() // it follows no changes any more
	end := run(b, double)
	defer end()
	until(t, b, j.ID, Succeeded)
	if got, err := a.Get(j.ID); err != nil || got.State != Queued {
		t.Fatalf("the node has heard of the end: %+v, %v", got, err)
	}
	if m := modelOf(t, a, j.ID); m != "abcabc" {
		t.Errorf("the model is %q", m)
	}
}
