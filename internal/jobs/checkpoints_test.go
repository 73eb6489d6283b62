package jobs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/files"
)

// checkpointed is a worker that saves a checkpoint, sends what it found before, and waits
// for its end.
func checkpointed(found chan<- string) Worker {
	return Worker{Run: func(ctx context.Context, t *Task) (Result, error) {
		data, err := t.LoadCheckpoint("epochs")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Result{}, err
		}
		if err := t.SaveCheckpoint("epochs", append(data, 'x')); err != nil {
			return Result{}, err
		}
		found <- string(data)
		<-ctx.Done()
		return Result{}, errors.Join(context.Cause(ctx), t.SaveCheckpoint("last", []byte("y")))
	}}
}

// saved returns the names of all files of checkpoints.
func saved(t *testing.T, q *Queue) []string {
	t.Helper()
	q.cleaning.Wait()
	list, err := filepath.Glob(filepath.Join(q.b.Dir(), checkpointsDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestCheckpoint_IsThereForTheNextAttempt(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	j := submit(t, q, "abc")
	found := make(chan string)
	want := ""
	for range 3 {
		end := run(q, checkpointed(found))
		if got := <-found; got != want {
			t.Errorf("found is %q, expected %q", got, want)
		}
		want += "x"
		end()
		// What a killed process leaves: a file that was not written completely, and the
		// checkpoint of a job that was removed.
		half := filepath.Join(q.checkpoints(j.ID), files.TemporaryPrefix+"1")
		if err := os.WriteFile(half, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(q.checkpoints("nobody"), 0o700); err != nil {
			t.Fatal(err)
		}
		stop()
		q, stop = open(t, options(dir))
		if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if list := saved(t, q); len(list) != 1 {
			t.Errorf("%v", list)
		}
	}
	stop()
	if !IsStore(dir) {
		t.Error("a folder with checkpoints is not taken for one of jobs")
	}
	q, _ = open(t, options(dir))
	end := run(q, double)
	until(t, q, j.ID, Succeeded)
	end()
	if list := saved(t, q); len(list) != 0 {
		t.Errorf("left is %v", list)
	}
}

func TestCheckpoint_IsRemovedWithACancelledJob(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	found := make(chan string)
	end := run(q, checkpointed(found))
	j := submit(t, q, "abc")
	<-found
	if _, _, err := q.Delete(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	end()
	if list := saved(t, q); len(list) != 0 {
		t.Errorf("left is %v", list)
	}
}

func TestCheckpoint_IsBounded(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	half := make([]byte, maxCheckpoints/2)
	end := run(q, Worker{Run: func(_ context.Context, task *Task) (Result, error) {
		for range 3 { // replaces itself
			if err := task.SaveCheckpoint("a", half); err != nil {
				t.Error(err)
			}
		}
		if err := task.SaveCheckpoint("b", half); err != nil {
			t.Error(err)
		}
		if err := task.SaveCheckpoint("c", []byte("x")); !errors.Is(err, errCheckpoints) {
			t.Errorf("one byte too many: %v", err)
		}
		if data, err := task.LoadCheckpoint("b"); err != nil || len(data) != len(half) {
			t.Errorf("%d bytes, %v", len(data), err)
		}
		return Result{Model: strings.NewReader("m")}, nil
	}})
	defer end()
	began := time.Now()
	until(t, q, submit(t, q, "abc").ID, Succeeded)
	t.Logf("it took %s", time.Since(began))
}
