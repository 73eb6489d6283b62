package workers

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
)

func TestWrap_ReturnsAPanicAsErrorWithItsPosition(t *testing.T) {
	err := Pool{}.Wrap(func() error { panic("boom") })()
	if err == nil || !strings.Contains(err.Error(), "boom") || !strings.Contains(err.Error(), "workers_test.go") {
		t.Error(err)
	}
}

func TestEach_CallsEveryIndexOnce(t *testing.T) {
	for _, threads := range []int{0, 1, 3, 50} {
		var calls [20]atomic.Int64
		err := Pool{Threads: threads}.Each(t.Context(), len(calls), func(_ context.Context, i int) error {
			calls[i].Add(1)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		for i := range calls {
			if n := calls[i].Load(); n != 1 {
				t.Errorf("%d threads: index %d called %d times", threads, i, n)
			}
		}
	}
}

func TestEach_StopsAfterAnError(t *testing.T) {
	broken := errors.New("broken")
	var calls atomic.Int64
	err := Pool{Threads: 2}.Each(t.Context(), 1000, func(_ context.Context, i int) error {
		if calls.Add(1); i == 3 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || calls.Load() == 1000 {
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
}

func TestEach_ReturnsTheCauseOfItsContext(t *testing.T) {
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := (Pool{Threads: 2}).Each(ctx, 5, func(context.Context, int) error { return nil }); !errors.Is(err, cause) {
		t.Error(err)
	}
}
