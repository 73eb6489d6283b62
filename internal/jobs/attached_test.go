package jobs

import (
	"context"
	"errors"
	"testing"
	"time"
)

func begin(t *testing.T, a *Attached, id string) (*AttachedJob, context.Context) {
	t.Helper()
	j, ctx, err := a.Begin(t.Context(), id, "train")
	if err != nil {
		t.Fatal(err)
	}
	return j, ctx
}

func TestAttached_ReportsAJobFromItsBeginningToItsEnd(t *testing.T) {
	a := NewAttached()
	j, ctx := begin(t, a, "")
	if got, err := a.Get(j.ID()); err != nil || got.State != Queued || !got.Attached || got.Losses == nil || got.Warnings == nil || got.CreatedAt.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	_, revision, err := a.Wait(t.Context(), j.ID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	j.Start()
	loss := 0.5
	losses := []float64{0.7, 0.5}
	j.Progress(Progress{Phase: "training", Loss: &loss}, losses)
	losses[0] = 9
	got, next, err := a.Wait(t.Context(), j.ID(), revision)
	if err != nil || next <= revision || got.State != Running || got.StartedAt == nil || got.Attempts != 1 || got.Losses[0] != 0.7 || *got.Progress.Loss != 0.5 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := a.Model(t.Context(), j.ID()); !errors.Is(err, ErrNoModel) {
		t.Error(err)
	}
	if err := j.Succeed("abc", nil); err != nil {
		t.Error(err)
	}
	j.Fail("too late")
	j.Progress(Progress{Phase: "too late"}, nil)
	got, _, err = a.Wait(t.Context(), j.ID(), next)
	if err != nil || got.State != Succeeded || got.Error != nil || *got.ModelSHA256 != "abc" || got.Progress.Fraction != 1 || got.EndedAt == nil || got.Progress.Phase != "training" {
		t.Errorf("%+v, %v", got, err)
	}
	if ctx.Err() == nil {
		t.Error("the context has not ended with the job")
	}
}

func TestAttached_WakesForProgressOnceASecond(t *testing.T) {
	a := NewAttached()
	j, _ := begin(t, a, "")
	_, revision, err := a.Wait(t.Context(), j.ID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		j.Progress(Progress{Phase: "training", Epoch: i}, nil)
	}
	got, next, err := a.Wait(t.Context(), j.ID(), revision)
	if err != nil || next != revision+1 || got.Progress.Epoch != 999 {
		t.Errorf("revision %d after %d, %+v, %v", next, revision, got, err)
	}
}

func TestAttached_CancelsAJob(t *testing.T) {
	a := NewAttached()
	j, ctx := begin(t, a, "my-training")
	if _, _, err := a.Begin(t.Context(), "my-training", "train"); !errors.Is(err, ErrExists) {
		t.Errorf("a second job of the same id: %v", err)
	}
	got, removed, err := a.Delete(t.Context(), j.ID())
	if err != nil || removed || got.State != Cancelled || !errors.Is(context.Cause(ctx), ErrCancelled) {
		t.Errorf("%+v, %v, %v, cause %v", got, removed, err, context.Cause(ctx))
	}
	if err := j.Succeed("abc", nil); !errors.Is(err, ErrCancelled) {
		t.Errorf("a cancelled job has succeeded: %v", err)
	}
	again, _ := begin(t, a, "my-training") // the client tries again
	j.Release()
	if got, err := a.Get("my-training"); err != nil || got.State != Queued {
		t.Errorf("%+v, %v", got, err)
	}
	again.Cancel()
	again.Release()
	if _, removed, err := a.Delete(t.Context(), "my-training"); err != nil || !removed || len(a.List()) != 0 {
		t.Errorf("%v, %v, %+v", removed, err, a.List())
	}
	if _, _, err := a.Delete(t.Context(), "my-training"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

func TestAttached_KeepsFewJobsThatHaveEnded(t *testing.T) {
	a := NewAttached()
	waiting, _ := begin(t, a, "")
	var last string
	for range 2 * maxAttachedEnded {
		j, _ := begin(t, a, "")
		j.Fail("Too dark")
		j.Release()
		j.Release() // does nothing
		last = j.ID()
	}
	if list := a.List(); len(list) != maxAttachedEnded+1 || list[0].ID != last || list[maxAttachedEnded].ID != waiting.ID() {
		t.Errorf("%d jobs, expected %d", len(list), maxAttachedEnded+1)
	}
}

func TestAttached_ForgetsAReleasedJob(t *testing.T) {
	a := NewAttached()
	j, _ := begin(t, a, "")
	j.Fail("Too dark")
	j.Release()
	_, revision, err := a.Wait(t.Context(), j.ID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	j.expiry.Reset(time.Millisecond) // instead of attachedKept
	if _, _, err := a.Wait(t.Context(), j.ID(), revision); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}
