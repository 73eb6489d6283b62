package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/nats-io/nats.go"
)

func TestAsk_GetsTheAnswerOrFailsInTime(t *testing.T) {
	s := brokertest.InProcess(t)
	start := func() *Members {
		m, err := Join(t.Context(), brokertest.Open(t, s.URL(), nil), func() Node { return Node{Role: RoleServe} }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		return m
	}
	a, b := start(), start()
	var asked atomic.Int32
	large := make([]byte, 1<<20)
	stop, err := b.Answer("test", func(ctx context.Context, q Question) ([]byte, bool) {
		asked.Add(1)
		switch string(q.Data) {
		case "no":
			return nil, false
		case "large":
			return large, true
		case "slow":
			<-ctx.Done() // ends when the asker gives up
			return []byte("late"), true
		}
		return append([]byte(q.Header.Get("Name")+" "), q.Data...), true
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	const limit = 5 * time.Second
	ask := func(data string, limit time.Duration) (string, error) {
		got, err := a.Ask(t.Context(), b.Self(), "test", Question{nats.Header{"Name": {"n"}}, []byte(data)}, limit)
		return string(got), err
	}
	if got, err := ask("hello", limit); err != nil || got != "n hello" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ask("no", limit); !errors.Is(err, ErrDeclined) {
		t.Errorf("declined: %v", err)
	}
	if _, err := ask("large", limit); !errors.Is(err, ErrDeclined) {
		t.Errorf("an answer that is too large: %v", err)
	}
	if _, err := ask(string(large), limit); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a question that is too large: %v", err)
	}
	began := time.Now()
	if _, err := a.Ask(t.Context(), "unknown", "test", Question{}, limit); !errors.Is(err, ErrNoAnswer) || time.Since(began) > limit {
		t.Errorf("an unknown node: %v after %s", err, time.Since(began))
	}
	ended, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("the client is gone")
	cancel(reason)
	if _, err := a.Ask(ended, b.Self(), "test", Question{Data: []byte("hello")}, limit); !errors.Is(err, reason) {
		t.Errorf("the asker's context: %v", err)
	}
	if got, err := ask("hello", limit); err != nil || got != "n hello" {
		t.Errorf("after failures that were not the node's: %q, %v", got, err)
	}
	before := asked.Load()
	if _, err := ask("slow", 100*time.Millisecond); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("a slow node: %v", err)
	}
	began = time.Now()
	if _, err := ask("hello", limit); !errors.Is(err, ErrNoAnswer) || time.Since(began) > time.Second {
		t.Errorf("a node that was slow: %v", err)
	}
	if n := asked.Load() - before; n != 1 {
		t.Errorf("a slow node was asked %d times", n)
	}
}

func TestGone_OnlyWhileOwnSignsAreSeen(t *testing.T) {
	s := brokertest.InProcess(t)
	start := func() *Members {
		m, err := join(t.Context(), brokertest.Open(t, s.URL(), nil), func() Node { return Node{} }, slog.New(slog.DiscardHandler), 600*time.Millisecond, 100*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		return m
	}
	a, b := start(), start()
	within := func(what string, holds func() bool) {
		t.Helper()
		for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(5 * time.Millisecond) {
			if holds() {
				return
			}
		}
		t.Fatal(what)
	}
	within("both are alive", func() bool { return len(a.Alive()) == 2 && !a.Gone(b.Self()) && a.Gone("unknown") })
	if a.Gone(a.Self()) {
		t.Error("a node is gone for itself")
	}
	s.Stop()
	within("the node is alone", func() bool { return len(a.Alive()) == 1 })
	if a.Gone(b.Self()) || a.Gone("unknown") {
		t.Error("without the servers a node knows that others are gone")
	}
	s.Start()
	within("the other is back", func() bool { return len(a.Alive()) == 2 })
	b.stop()
	b.tasks.Wait()
	within("the other is gone", func() bool { return a.Gone(b.Self()) })
	if ids := a.Owners("m", "", 3); !slices.Equal(ids, []string{a.Self()}) {
		t.Errorf("owners %v", ids)
	}
}
