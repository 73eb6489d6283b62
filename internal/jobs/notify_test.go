package jobs

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestNotify_DeliversAgainAfterARestart(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	r := upload("abc")
	r.Callback = "http://example.org/"
	j, err := q.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	other := submit(t, q, "def") // without a callback
	ctx, cancel := context.WithCancel(t.Context())
	calls := make(chan Job)
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.Notify(ctx, func(ctx context.Context, url string, j Job) error {
			calls <- j
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	for _, id := range []string{other.ID, j.ID} {
		if _, _, err := q.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if got := <-calls; got.ID != j.ID || got.State != Cancelled {
		t.Errorf("%+v", got)
	}
	cancel()
	<-done
	stop()

	q, _ = open(t, options(dir))
	ctx, cancel = context.WithCancel(t.Context())
	tries := 0
	started := time.Now()
	go func() {
		for {
			e, err := q.entry(j.ID)
			if err != nil {
				t.Error(err)
			}
			q.mu.Lock()
			delivered := e.record.Callback == ""
			q.mu.Unlock()
			if delivered {
				cancel()
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	q.Notify(ctx, func(_ context.Context, url string, got Job) error {
		if tries++; tries == 1 {
			return errors.New("not yet")
		}
		if url != r.Callback || got.ID != j.ID {
			t.Errorf("%s, %+v", url, got)
		}
		return nil
	})
	if tries != 2 || time.Since(started) < firstDeliveryPause {
		t.Errorf("%d tries in %s", tries, time.Since(started))
	}
}

func TestNotify_DeliversWhileAReceiverDoesNotAnswer(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	var ids []string
	for _, url := range []string{"http://silent.test/", "http://other.test/"} {
		r := upload("abc")
		r.Callback = url
		j, err := q.Submit(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, j.ID)
	}
	ctx, cancel := context.WithCancel(t.Context())
	silent, other := make(chan struct{}), make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.Notify(ctx, func(ctx context.Context, url string, j Job) error {
			if j.ID == ids[0] {
				close(silent) // panics if the job is sent twice at once
				<-ctx.Done()
				return ctx.Err()
			}
			other <- j.ID
			return nil
		})
	}()
	if _, _, err := q.Delete(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	<-silent
	if _, _, err := q.Delete(t.Context(), ids[1]); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-other:
		if got != ids[1] {
			t.Errorf("%s was delivered", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("the other callback was not delivered")
	}
	cancel()
	<-done
	if got := q.jobs[ids[0]].record.Callback; got == "" {
		t.Error("the callback without an answer is not kept for the next process")
	}
}
