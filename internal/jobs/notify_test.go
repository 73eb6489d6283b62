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
