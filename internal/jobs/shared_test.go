package jobs

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
)

func TestUpload_ReadsAFileOfAJobThatAnotherProcessRuns(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	j := submit(t, a, "abc")
	job, err := a.Get(j.ID)
	if err != nil {
		t.Fatal(err)
	}
	e, err := a.entry(job.ID)
	if err != nil {
		t.Fatal(err)
	}
	content, err := b.Upload(t.Context(), j.ID, e.record.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(content); err != nil || string(data) != "abc" {
		t.Errorf("%q, %v", data, err)
	}
	for id, name := range map[string]string{j.ID: "other", "unknown": e.record.Files[0]} {
		if _, err := b.Upload(t.Context(), id, name); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s of %s: %v", name, id, err)
		}
	}
}

func TestSharers_CountsTheRunningJobsOfAKindAndCaller(t *testing.T) {
	q := join(t, brokertest.InProcess(t).URL())
	running, release := make(chan string), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		q.Run(ctx, ctx, Worker{Kind: "detect", Parallel: 3,
			Admit: func(context.Context) (func(), error) { return func() {}, nil },
			Run: func(_ context.Context, task *Task) (Result, error) {
				running <- task.Job.ID
				<-release
				return Result{Results: strings.NewReader("")}, nil
			}})
	}()
	defer func() {
		close(release)
		stop()
		<-ended
	}()
	want := map[string]int{}
	for _, caller := range []string{"one", "one", "two"} {
		j, err := q.Submit(t.Context(), Request{Kind: "detect", Caller: caller, Fields: map[string]string{}})
		if err != nil {
			t.Fatal(err)
		}
		want[j.ID] = map[string]int{"one": 2, "two": 1}[caller]
	}
	for range want {
		<-running
	}
	for id, n := range want {
		if got := q.Sharers(id); got != n {
			t.Errorf("%d jobs share, want %d", got, n)
		}
	}
	if n := q.Sharers("unknown"); n != 1 {
		t.Errorf("%d", n)
	}
}
