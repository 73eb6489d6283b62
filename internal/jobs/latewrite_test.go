package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// lateStore is a store of records that stores the first update to a state, but reports
// that it did not answer in time.
type lateStore struct {
	jetstream.KeyValue
	state State
	late  atomic.Bool
}

func (s *lateStore) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	again, err := s.KeyValue.Update(ctx, key, value, revision)
	var r record
	if json.Unmarshal(value, &r) == nil && r.State == s.state && s.late.CompareAndSwap(false, true) {
		return 0, context.DeadlineExceeded
	}
	return again, err
}

func TestRun_KeepsTheModelOfAJobWhoseLastWriteIsAnsweredTooLate(t *testing.T) {
	o := options(t.TempDir())
	o.MaxAge = time.Hour
	q, _ := open(t, o)
	q.states = &lateStore{KeyValue: q.states, state: Succeeded}
	r := upload("abc")
	r.Callback = "http://example.org/"
	j, err := q.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	delivered := make(chan Job, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.Notify(ctx, func(_ context.Context, _ string, j Job) error {
			delivered <- j
			return nil
		})
	}()
	end := run(q, double)
	until(t, q, j.ID, Succeeded)
	select {
	case got := <-delivered:
		if got.State != Succeeded {
			t.Errorf("%+v", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("no callback was sent")
	}
	end()
	cancel()
	<-done
	q.mu.Lock()
	q.swept = time.Time{}
	q.mu.Unlock()
	q.sweep(t.Context())
	if _, err := q.Get(j.ID); err != nil {
		t.Fatalf("the job was removed as too old: %v", err)
	}
	if got := modelOf(t, q, j.ID); got != "abcabc" {
		t.Errorf("model %q", got)
	}
	if n := stored(t, q); n != 2 {
		t.Errorf("%d subjects are stored, expected those of the model", n)
	}
}

func TestDelete_StopsAJobAlthoughItsWriteIsAnsweredTooLate(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	q.states = &lateStore{KeyValue: q.states, state: Cancelled}
	j := submit(t, q, "abc")
	begun, stopped := make(chan struct{}), make(chan error, 1)
	end := run(q, Worker{Run: func(ctx context.Context, task *Task) (Result, error) {
		task.Progress(Progress{Phase: "first"}, nil)
		close(begun)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				task.Progress(Progress{Phase: "next"}, nil)
			case <-ctx.Done():
				stopped <- context.Cause(ctx)
				return Result{}, context.Cause(ctx)
			}
		}
	}})
	defer end()
	<-begun
	if _, _, err := q.Delete(t.Context(), j.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	select {
	case err := <-stopped:
		if !errors.Is(err, ErrCancelled) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the job still runs")
	}
	until(t, q, j.ID, Cancelled)
	end()
	if n := stored(t, q); n != 0 {
		t.Errorf("%d subjects are stored", n)
	}
}

// brokenStore is a store of records that stores no final state but Failed.
type brokenStore struct{ jetstream.KeyValue }

func (s brokenStore) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	var r record
	if json.Unmarshal(value, &r) == nil && r.State == Succeeded {
		return 0, errors.New("internal detail")
	}
	return s.KeyValue.Update(ctx, key, value, revision)
}

func TestRun_ReportsAFailureOfTheStoreAsASentence(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	q.states = brokenStore{q.states}
	j := submit(t, q, "abc")
	end := run(q, double)
	got := until(t, q, j.ID, Failed)
	end()
	if want := serviceFailed(j.ID).Error(); got.Error == nil || *got.Error != want {
		t.Errorf("%v, expected %q", *got.Error, want)
	}
	if n := stored(t, q); n != 0 {
		t.Errorf("%d subjects of a job without a model are stored", n)
	}
}
