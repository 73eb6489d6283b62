package monitor

import (
	"context"
	"log/slog"
	"strconv"
	"testing"
	"time"
)

// away is a store that does not answer.
type away struct{ Store }

func (away) save(ctx context.Context, _ *Monitor) error  { <-ctx.Done(); return context.Cause(ctx) }
func (away) leave(ctx context.Context, _ *Monitor) error { <-ctx.Done(); return context.Cause(ctx) }
func (away) close()                                      {}

func TestSet_EndsAlthoughItsStoreDoesNotAnswer(t *testing.T) {
	set := NewSet(newModel(), away{}, slog.New(slog.DiscardHandler))
	set.ending = 50 * time.Millisecond
	for i := range 10 {
		name := strconv.Itoa(i)
		set.monitors[name] = &Monitor{key: "m", name: name}
	}
	began := make(chan struct{})
	go func() {
		close(began)
		set.Save()
	}()
	<-began
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		set.Close()
	}()
	select {
	case <-ended:
	case <-time.After(saveTimeout):
		t.Error("Close waits for each monitor")
	}
}
