package bulk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
)

func encodeLine(t testing.TB, l Line) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(l); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRun_ResultsEqualThoseOfSingleDetectionsInTheOrderOfTheZip(t *testing.T) {
	d := detector(t)
	entries, zipped := someImages(t, 300)
	threshold := 0.02
	meta, _ := d.Model().Metadata.WithThreshold(threshold)
	embedded, err := broker.Open(t.Context(), broker.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = embedded.Close() })
	join := cluster(t)
	for name, brokers := range map[string][]*broker.Broker{"one process": {embedded}, "a cluster": {join(), join(), join()}} {
		t.Run(name, func(t *testing.T) {
			var states jobStates
			var processes []*process
			for _, b := range brokers {
				p := start(t, b, d, &states)
				p.works(t)
				processes = append(processes, p)
			}
			for _, c := range []struct {
				id        string
				threshold *float64
				want      string
			}{{"plain", nil, wantLines(t, d, nil, entries)}, {"moved", &threshold, wantLines(t, d, meta, entries)}} {
				job := jobOf(t, c.id, d, zipped)
				job.Threshold = c.threshold
				last := Counts{}
				job.Progress = func(n Counts) { last = n }
				r, err := processes[0].Run(t.Context(), job)
				if err != nil {
					t.Fatal(err)
				}
				if got := linesOf(t, r); got != c.want {
					t.Errorf("%s: the lines differ from those of single detections", c.id)
				}
				want := Counts{Judged: 294, Anomalous: strings.Count(c.want, `"is_anomaly":true`), Unreadable: 6}
				if r.Counts != want || last != want {
					t.Errorf("%s: counts %+v, the last progress %+v, want %+v", c.id, r.Counts, last, want)
				}
				if err := processes[0].Remove(t.Context(), c.id); err != nil {
					t.Fatal(err)
				}
			}
			if n := processes[0].left(t); n != 0 {
				t.Errorf("%d messages are left", n)
			}
		})
	}
}

func TestRun_JudgesImagesLargerThanAMessage(t *testing.T) {
	d, join := detector(t), cluster(t)
	entries, _ := someImages(t, 4)
	// Bytes after the end of a PNG are ignored.
	entries[1].data = append(slices.Clone(entries[1].data), make([]byte, 3<<20)...)
	entries[3].data = append(slices.Clone(entries[3].data), make([]byte, chunkBytes)...)
	var states jobStates
	p := start(t, join(), d, &states)
	p.works(t)
	r, err := p.Run(t.Context(), jobOf(t, "job", d, zipOf(t, entries...)))
	if err != nil {
		t.Fatal(err)
	}
	if linesOf(t, r) != wantLines(t, d, nil, entries) || r.Counts.Judged != len(entries) {
		t.Errorf("the lines differ from those of single detections: %+v", r.Counts)
	}
	subjects, _, err := p.broker.Subjects(t.Context(), p.files, chunkSubject+">")
	if err != nil || len(subjects) > 0 {
		t.Errorf("%v is left, %v", subjects, err)
	}
}

func TestRun_DoesAPieceAgainWhoseWorkerDied(t *testing.T) {
	d, join := detector(t), cluster(t)
	entries, zipped := someImages(t, 200)
	var states jobStates
	coordinator, dying, other := start(t, join(), d, &states), start(t, join(), d, &states), start(t, join(), d, &states)
	died := make(chan struct{})
	dying.before = func(ctx context.Context, _ string) error { // in its first piece
		if dying.pieces.Load() == 1 {
			dying.kill()
			close(died)
		}
		return nil
	}
	dying.works(t)
	go func() {
		<-died
		other.works(t)
	}()
	r, err := coordinator.Run(t.Context(), jobOf(t, "job", d, zipped))
	if err != nil {
		t.Fatal(err)
	}
	if linesOf(t, r) != wantLines(t, d, nil, entries) {
		t.Error("the lines differ from those of single detections")
	}
}

func TestRun_ContinuesAfterACoordinatorThatDiedAtAnyStep(t *testing.T) {
	d, join := detector(t), cluster(t)
	entries, zipped := someImages(t, 300)
	var states jobStates
	worker := start(t, join(), d, &states)
	worker.works(t)
	want := wantLines(t, d, nil, entries)
	job := jobOf(t, "", d, zipped)
	pieces := len(plan(job.Images, worker.o.Images, job.Line))
	if pieces < 2 {
		t.Fatalf("%d pieces", pieces)
	}
	// The connection of the coordinator ends after the given number of its results; before
	// the first, after it has stored pieces.
	for after := range pieces {
		job.ID = "job" + string(rune('a'+after))
		before := worker.pieces.Load()
		dying, cancelled := start(t, join(), d, &states), errors.New("died")
		ctx, cancel := context.WithCancelCause(t.Context())
		results := 0
		job.Progress = func(Counts) {
			if results++; results >= after {
				dying.kill()
				cancel(cancelled)
			}
		}
		if after == 0 {
			time.AfterFunc(30*time.Millisecond, func() {
				dying.kill()
				cancel(cancelled)
			})
		}
		if _, err := dying.Run(ctx, job); err == nil {
			t.Fatal("the coordinator did not die")
		}
		job.Progress = nil
		next := start(t, join(), d, &states)
		r, err := next.Run(t.Context(), job)
		if err != nil {
			t.Fatal(err)
		}
		if linesOf(t, r) != want {
			t.Errorf("after %d results, the lines differ from those of single detections", after)
		}
		if n := worker.pieces.Load() - before; n != int64(pieces) {
			t.Errorf("after %d results, %d pieces were judged of %d", after, n, pieces)
		}
		cancel(nil)
	}
}

func TestRun_StoresALostPieceAgain(t *testing.T) {
	d, join := detector(t), cluster(t)
	entries, zipped := someImages(t, 130)
	var states jobStates
	coordinator := start(t, join(), d, &states)
	stream := coordinator.work
	go func() {
		for {
			if info, err := stream.Info(context.Background()); err == nil && info.State.Msgs > 0 {
				if err := stream.Purge(context.Background()); err != nil {
					t.Error(err)
				}
				coordinator.works(t)
				return
			}
		}
	}()
	r, err := coordinator.Run(t.Context(), jobOf(t, "job", d, zipped))
	if err != nil {
		t.Fatal(err)
	}
	if linesOf(t, r) != wantLines(t, d, nil, entries) {
		t.Error("the lines differ from those of single detections")
	}
}

func TestWork_GoesOnWhenTheServersHaveLostItsConsumer(t *testing.T) {
	d, join := detector(t), cluster(t)
	entries, zipped := someImages(t, 20)
	var states jobStates
	p := start(t, join(), d, &states)
	if err := p.work.DeleteConsumer(t.Context(), workers); err != nil {
		t.Fatal(err)
	}
	p.works(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := p.Run(ctx, jobOf(t, "job", d, zipped))
	if err != nil {
		t.Fatal(err)
	}
	if linesOf(t, r) != wantLines(t, d, nil, entries) {
		t.Error("the lines differ from those of single detections")
	}
}

func TestRun_FailsWithASentence(t *testing.T) {
	d, join := detector(t), cluster(t)
	_, zipped := someImages(t, 20)
	for _, c := range []struct {
		name, want string
		change     func(*process, *Job)
	}{
		{"without its model", "The model of the job is not there any more: submit the job again", func(_ *process, j *Job) { j.Model = "other" }},
		{"by a piece that fails each time", "The service ended or failed 5 times during piece 1 of the images, which was not tried again",
			func(p *process, _ *Job) {
				p.before = func(context.Context, string) error { return errors.New("broken") }
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var states jobStates
			p := start(t, join(), d, &states)
			job := jobOf(t, strings.ReplaceAll(c.name, " ", "-"), d, zipped)
			c.change(p, &job)
			p.works(t)
			_, err := p.Run(t.Context(), job)
			var failure *Failure
			if !errors.As(err, &failure) || failure.Sentence != c.want {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestWork_StopsAPieceOfACancelledJobAndRemoveLeavesNothing(t *testing.T) {
	d, join := detector(t), cluster(t)
	_, zipped := someImages(t, 130)
	var states jobStates
	p := start(t, join(), d, &states)
	began := make(chan struct{}, 10)
	p.before = func(ctx context.Context, _ string) error { // a piece that takes long
		began <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	p.works(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-began
		states.end("job")
		cancel()
	}()
	if _, err := p.Run(ctx, jobOf(t, "job", d, zipped)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := p.Remove(t.Context(), "job"); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(2 * time.Second)
	for p.left(t) > 0 {
		if time.Now().After(end) {
			t.Fatalf("%d messages are left", p.left(t))
		}
		time.Sleep(10 * time.Millisecond)
	}
	states.ended = nil
	p.before = nil
	if _, err := p.Run(t.Context(), jobOf(t, "next", d, zipped)); err != nil { // the worker is free
		t.Fatal(err)
	}
}

func TestTidy_RemovesWhatJobsThatEndedHaveLeft(t *testing.T) {
	d, join := detector(t), cluster(t)
	_, zipped := someImages(t, 20)
	var states jobStates
	p := start(t, join(), d, &states)
	p.works(t)
	for _, id := range []string{"kept", "ended"} {
		if _, err := p.Run(t.Context(), jobOf(t, id, d, zipped)); err != nil {
			t.Fatal(err)
		}
	}
	states.end("ended")
	if err := p.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	subjects, _, err := p.broker.Subjects(t.Context(), p.files, ">")
	if err != nil {
		t.Fatal(err)
	}
	pieces := len(plan(list(t, zipped), p.o.Images, 1))
	if len(subjects) != pieces {
		t.Errorf("%v is left, want %d results", subjects, pieces)
	}
	for subject := range subjects {
		if !strings.HasPrefix(subject, resultSubject+"kept.") {
			t.Errorf("%s is left", subject)
		}
	}
}

func TestRun_SharesTheWorkersBetweenJobs(t *testing.T) {
	d, join := detector(t), cluster(t)
	_, long := someImages(t, 2000)
	_, short := someImages(t, 400)
	var states jobStates
	p := start(t, join(), d, &states)
	p.works(t)
	first, second := jobOf(t, "long", d, long), jobOf(t, "short", d, short)
	pieces := len(plan(second.Images, p.o.Images, second.Line))
	var during atomic.Int64 // results of the first while the second runs
	var running atomic.Bool
	ended := make(chan struct{})
	first.Progress = func(Counts) {
		if during.Add(1); running.CompareAndSwap(false, true) {
			during.Store(0)
			go func() {
				defer close(ended)
				if _, err := p.Run(t.Context(), second); err != nil {
					t.Error(err)
				}
				// The pieces of the first that were stored before come on top.
				if n := during.Load(); n > int64(pieces+minWindow+slots+1) {
					t.Errorf("%d pieces of the first job were judged during the %d of the second", n, pieces)
				}
			}()
		}
	}
	if _, err := p.Run(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	default:
		t.Error("the second job did not end before the first")
	}
}
