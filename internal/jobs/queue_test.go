package jobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
)

// folder is a queue in a folder.
type folder struct {
	Options
	Dir string
}

// options returns options for small tests in a folder.
func options(dir string) folder {
	return folder{Options{MaxJobs: 100, MaxBytes: 10 << 30, Log: slog.New(slog.DiscardHandler)}, dir}
}

// open opens a queue until the test ends or the returned function is called.
func open(t testing.TB, o folder) (*Queue, func()) {
	t.Helper()
	b, err := broker.Open(t.Context(), broker.Options{Dir: o.Dir, Log: o.Log})
	if err != nil {
		t.Fatal(err)
	}
	q, err := Open(t.Context(), b, o.Options)
	if err != nil {
		t.Fatal(errors.Join(err, b.Close()))
	}
	stop := sync.OnceFunc(func() {
		if err := errors.Join(q.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return q, stop
}

// run runs the jobs of a queue until the returned function is called.
func run(q *Queue, w Worker) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	if w.Admit == nil {
		w.Admit = func(context.Context) (func(), error) { return func() {}, nil }
	}
	go func() {
		defer close(done)
		q.Run(ctx, ctx, w)
	}()
	return func() {
		cancel()
		<-done
	}
}

// double is a worker whose model is the upload twice.
var double = Worker{Run: func(ctx context.Context, t *Task) (Result, error) {
	c, err := t.Open(ctx, "zipFile")
	if err != nil {
		return Result{}, err
	}
	data, err := io.ReadAll(c)
	return Result{Model: strings.NewReader(string(data) + string(data)), Warnings: []string{"of " + t.Fields["level"]}}, err
}}

// block is a worker whose jobs run until they are stopped. It sends each job that
// begins.
func block(begun chan<- Job) Worker {
	return Worker{Run: func(ctx context.Context, t *Task) (Result, error) {
		begun <- t.Job
		<-ctx.Done()
		return Result{}, context.Cause(ctx)
	}}
}

func upload(text string) Request {
	return Request{Kind: "train", Fields: map[string]string{"level": "2"}, Files: []File{{"zipFile", int64(len(text)), strings.NewReader(text)}}}
}

func submit(t testing.TB, q *Queue, text string) Job {
	t.Helper()
	j, err := q.Submit(t.Context(), upload(text))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// until waits until a job has a state.
func until(t testing.TB, q *Queue, id string, s State) Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for after := uint64(0); ; {
		j, revision, err := q.Wait(ctx, id, after)
		if err != nil {
			last, _ := q.Get(id)
			t.Fatalf("waiting for %s: %v: %+v", s, err, last)
		}
		if j.State == s {
			return j
		}
		after = revision
	}
}

// stored returns the number of subjects in the store of files.
func stored(t testing.TB, q *Queue) int {
	t.Helper()
	q.cleaning.Wait()
	stream, err := q.b.JetStream.Stream(t.Context(), "OBJ_"+bucket)
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := q.b.Subjects(t.Context(), stream, ">")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func modelOf(t testing.TB, q *Queue, id string) string {
	t.Helper()
	c, err := q.Model(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(c)
	if err != nil || int64(len(data)) != c.Bytes {
		t.Fatalf("%d bytes of %d, %v", len(data), c.Bytes, err)
	}
	return string(data)
}

func TestQueue_RunsAJobAndKeepsItsModel(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	j := submit(t, q, "abc")
	if j.State != Queued || j.CreatedAt.IsZero() || j.Warnings == nil || j.Attempts != 0 {
		t.Errorf("%+v", j)
	}
	if _, err := q.Model(t.Context(), j.ID); !errors.Is(err, ErrNoModel) {
		t.Error(err)
	}
	var ended []Job
	w := double
	w.Ended = func(j Job) { ended = append(ended, j) }
	end := run(q, w)
	j = until(t, q, j.ID, Succeeded)
	end()
	sum := sha256.Sum256([]byte("abcabc"))
	if j.Attempts != 1 || j.StartedAt == nil || j.EndedAt == nil || j.Error != nil || *j.ModelSHA256 != hex.EncodeToString(sum[:]) ||
		j.Progress.Fraction != 1 || len(j.Warnings) != 1 || j.Warnings[0] != "of 2" || len(ended) != 1 {
		t.Errorf("%+v", j)
	}
	for range 2 {
		if m := modelOf(t, q, j.ID); m != "abcabc" {
			t.Errorf("the model is %q", m)
		}
		if n := stored(t, q); n != 2 {
			t.Errorf("%d subjects are stored, expected those of the model", n)
		}
		stop()
		q, stop = open(t, options(dir))
	}
	if got, err := q.Get(j.ID); err != nil || got.State != Succeeded || *got.ModelSHA256 != *j.ModelSHA256 || !got.EndedAt.Equal(*j.EndedAt) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, removed, err := q.Delete(t.Context(), j.ID); !removed || err != nil {
		t.Error(removed, err)
	}
	if _, _, err := q.Delete(t.Context(), j.ID); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if _, err := q.Model(t.Context(), j.ID); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if n := stored(t, q); n != 0 || len(q.List()) != 0 {
		t.Errorf("%d subjects, %d jobs", n, len(q.List()))
	}
}

func TestQueue_FailsAJobWithTheReason(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	for reason, w := range map[string]Worker{
		"Too dark": {Run: func(context.Context, *Task) (Result, error) { return Result{}, errors.New("Too dark") }},
		"The service failed; its log has the reason under the job": {Run: func(context.Context, *Task) (Result, error) { panic("bug") }},
		"The service failed; its log": {Run: func(context.Context, *Task) (Result, error) {
			return Result{Model: io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), failing{})}, nil
		}},
	} {
		end := run(q, w)
		j := until(t, q, submit(t, q, "abc").ID, Failed)
		end()
		if j.Error == nil || !strings.HasPrefix(*j.Error, reason) || j.EndedAt == nil || j.ModelSHA256 != nil {
			t.Errorf("%+v", j)
		}
	}
	if n := stored(t, q); n != 0 {
		t.Errorf("%d subjects are stored", n)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("no more") }

func TestQueue_RunsOneJobAtATimeInTheirOrder(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	var want, got []string
	var mu sync.Mutex
	running := 0
	for i := range 5 {
		want = append(want, submit(t, q, fmt.Sprint(i)).ID)
	}
	end := run(q, Worker{Run: func(ctx context.Context, task *Task) (Result, error) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, task.Job.ID)
		if running++; running != 1 {
			t.Error("two jobs run")
		}
		running--
		return Result{Model: strings.NewReader("m")}, nil
	}})
	for _, id := range want {
		until(t, q, id, Succeeded)
	}
	end()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, expected %v", got, want)
	}
	list := q.List()
	for i, j := range list {
		if j.ID != want[len(want)-1-i] {
			t.Errorf("entry %d is %s", i, j.ID)
		}
	}
}

func TestQueue_TakesEachJobAtOnce(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	end := run(q, double)
	defer end()
	for range 30 {
		started := time.Now()
		until(t, q, submit(t, q, "a").ID, Succeeded)
		if took := time.Since(started); took > 10*time.Second {
			t.Errorf("it took %s", took)
		}
	}
}

func TestQueue_CancelsARunningJobAtOnce(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	begun := make(chan Job)
	end := run(q, block(begun))
	defer end()
	j := submit(t, q, "abc")
	<-begun
	waiting := submit(t, q, "def")
	started := time.Now()
	got, removed, err := q.Delete(t.Context(), j.ID)
	if err != nil || removed || got.State != Cancelled || got.EndedAt == nil || got.Error != nil {
		t.Errorf("%+v, %v, %v", got, removed, err)
	}
	if next := <-begun; next.ID != waiting.ID { // the worker is free again
		t.Errorf("%s runs", next.ID)
	}
	if took := time.Since(started); took > time.Second && !testing.Short() {
		t.Errorf("it took %s", took)
	}
	if _, _, err := q.Delete(t.Context(), waiting.ID); err != nil {
		t.Error(err)
	}
	if n := stored(t, q); n != 0 {
		t.Errorf("%d subjects are stored", n)
	}
	// A job that was never started.
	end()
	j = submit(t, q, "ghi")
	for i := range 2 {
		if _, removed, err := q.Delete(t.Context(), j.ID); removed != (i == 1) || err != nil {
			t.Error(i, removed, err)
		}
	}
	defer run(q, block(begun))()
	last := submit(t, q, "jkl")
	if next := <-begun; next.ID != last.ID {
		t.Errorf("%s runs", next.ID)
	}
}

func TestQueue_GivesARunningJobBack(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	j := submit(t, q, "abc")
	begun := make(chan Job)
	for attempt := 1; attempt <= maxDeaths+1; attempt++ { // given back is not dead
		end := run(q, block(begun))
		if b := <-begun; b.Attempts != attempt {
			t.Errorf("attempt %d, expected %d", b.Attempts, attempt)
		}
		end()
		if got, _ := q.Get(j.ID); got.State != Queued || got.StartedAt != nil {
			t.Errorf("%+v", got)
		}
		if attempt == 2 {
			stop()
			q, stop = open(t, options(dir))
		}
	}
	end := run(q, double)
	defer end()
	if got := until(t, q, j.ID, Succeeded); got.Attempts != maxDeaths+2 {
		t.Errorf("%+v", got)
	}
}

func TestSubmit_RefusesWorkBeyondTheBytesAndLosesNothing(t *testing.T) {
	o := options(t.TempDir())
	o.MaxBytes = 2*modelReserve + 10
	q, _ := open(t, o)
	first := submit(t, q, "12345")
	if _, err := q.Submit(t.Context(), upload("123456")); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	second := submit(t, q, "12345")
	if _, err := q.Submit(t.Context(), upload("")); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	end := run(q, double)
	defer end()
	for _, j := range []Job{first, second} {
		until(t, q, j.ID, Succeeded)
		if m := modelOf(t, q, j.ID); m != "1234512345" {
			t.Errorf("the model is %q", m)
		}
	}
	if counts, bytes := q.Stats(); counts[Succeeded] != 2 || bytes != 20 {
		t.Errorf("%v, %d bytes", counts, bytes)
	}
	if _, err := q.Submit(t.Context(), Request{Files: []File{{"zipFile", 1 << 60, strings.NewReader("")}}}); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	q.o.MaxBytes = 1 << 62
	if _, err := q.Submit(t.Context(), Request{Files: []File{{"zipFile", 1 << 60, strings.NewReader("")}}}); !errors.Is(err, ErrNoSpace) {
		t.Error(err)
	}
}

func TestSubmit_KeepsNothingOfAnUploadThatFails(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	r := upload("abc")
	r.Files = append(r.Files, File{"baseModel", 1, io.MultiReader(strings.NewReader("half"), failing{})})
	if _, err := q.Submit(t.Context(), r); err == nil || !strings.Contains(err.Error(), "no more") {
		t.Error(err)
	}
	if n := stored(t, q); n != 0 || len(q.List()) != 0 || q.reservedBytes != 0 || q.reservedJobs != 0 {
		t.Errorf("%d subjects, %d jobs, %d bytes reserved", n, len(q.List()), q.reservedBytes)
	}
}

func TestSubmit_RemovesTheOldestFinishedJob(t *testing.T) {
	o := options(t.TempDir())
	o.MaxJobs = 2
	q, _ := open(t, o)
	a, b := submit(t, q, "a"), submit(t, q, "b")
	if _, err := q.Submit(t.Context(), upload("c")); !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
	end := run(q, double)
	until(t, q, a.ID, Succeeded)
	until(t, q, b.ID, Succeeded)
	end()
	submit(t, q, "c")
	if _, err := q.Get(a.ID); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if _, err := q.Get(b.ID); err != nil {
		t.Error(err)
	}
	q.o.MaxAge = time.Nanosecond
	submit(t, q, "d")
	if _, err := q.Get(b.ID); !errors.Is(err, ErrUnknown) {
		t.Error("a job that is too old is kept")
	}
	if n := len(q.List()); n != 2 {
		t.Errorf("%d jobs", n)
	}
}

func TestWait_ReturnsProgressAndEnds(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	proceed := make(chan struct{})
	end := run(q, Worker{Run: func(ctx context.Context, task *Task) (Result, error) {
		loss := 0.5
		task.Progress(Progress{Phase: "training", Fraction: 0.5, Epoch: 1, Epochs: 2, Loss: &loss, SecondsLeft: &loss}, []float64{0.7, loss})
		<-proceed
		return Result{Model: strings.NewReader("m")}, nil
	}})
	defer end()
	j := submit(t, q, "abc")
	var last uint64
	for {
		got, revision, err := q.Wait(t.Context(), j.ID, last)
		if err != nil || revision <= last {
			t.Fatal(revision, err)
		}
		last = revision
		if got.Progress.Phase == "training" && *got.Progress.Loss == 0.5 && slices.Equal(got.Losses, []float64{0.7, 0.5}) {
			break
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := q.Wait(short, j.ID, last); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(proceed)
	got, revision, err := q.Wait(t.Context(), j.ID, last)
	if err != nil || got.State != Succeeded || got.Progress.SecondsLeft != nil || len(got.Losses) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	removed := make(chan error)
	go func() {
		_, _, err := q.Wait(t.Context(), j.ID, revision)
		removed <- err
	}()
	if _, _, err := q.Delete(t.Context(), j.ID); err != nil {
		t.Error(err)
	}
	if err := <-removed; !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

func TestQueue_LeavesNoGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	q, stop := open(t, options(t.TempDir()))
	end := run(q, double)
	until(t, q, submit(t, q, "abc").ID, Succeeded)
	end()
	stop()
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			buffer := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, before %d: %s", runtime.NumGoroutine(), before, buffer[:runtime.Stack(buffer, true)])
		}
	}
}
