package jobs

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
)

// die leaves a queue as a process that is killed while a job runs.
func die(t *testing.T, q *Queue, id string) {
	t.Helper()
	err := q.change(t.Context(), q.jobs[id], func(r *record) error {
		now := time.Now()
		r.State, r.StartedAt = Running, &now
		r.Attempts++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpen_QueuesAJobOfAKilledProcessAgain(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	j := submit(t, q, "abc")
	for range maxDeaths - 1 {
		die(t, q, j.ID)
		stop()
		q, stop = open(t, options(dir))
		if got, _ := q.Get(j.ID); got.State != Queued {
			t.Errorf("%+v", got)
		}
	}
	end := run(q, double)
	defer end()
	if got := until(t, q, j.ID, Succeeded); got.Attempts != maxDeaths {
		t.Errorf("%+v", got)
	}
}

func TestOpen_FailsAJobAfterThreeDeaths(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	j := submit(t, q, "abc")
	for range maxDeaths {
		die(t, q, j.ID)
		stop()
		q, stop = open(t, options(dir))
	}
	got, _ := q.Get(j.ID)
	if got.State != Failed || got.Error == nil || !strings.Contains(*got.Error, "3 times") || stored(t, q) != 0 {
		t.Errorf("%+v", got)
	}
	begun := make(chan Job)
	end := run(q, block(begun))
	defer end()
	next := submit(t, q, "def")
	if b := <-begun; b.ID != next.ID {
		t.Errorf("%s runs", b.ID)
	}
}

func TestOpen_RemovesAJobWhoseRecordIsDamaged(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	damaged, whole := submit(t, q, "damaged"), submit(t, q, "whole")
	if _, err := q.states.Put(t.Context(), damaged.ID, []byte(`{"id": 5`)); err != nil {
		t.Fatal(err)
	}
	stop()
	q, _ = open(t, options(dir))
	if _, err := q.Get(damaged.ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("the damaged job: %v", err)
	}
	begun := make(chan Job)
	end := run(q, block(begun))
	defer end()
	if b := <-begun; b.ID != whole.ID {
		t.Errorf("%s runs, expected the job that is whole", b.ID)
	}
}

func TestOpen_RepairsAnInterruptedSubmission(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	kept := submit(t, q, "kept")
	// Chunks without a description, and files without a record.
	if _, err := q.b.JetStream.Publish(t.Context(), "$O.jobs.C.half", []byte("half")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := q.files.Put(t.Context(), "nobody/zipFile", strings.NewReader("whole")); err != nil {
		t.Fatal(err)
	}
	// A record without a message.
	if err := q.work[KindTrain].Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	q, _ = open(t, options(dir))
	if n := stored(t, q); n != 2 {
		t.Errorf("%d subjects are stored", n)
	}
	end := run(q, double)
	defer end()
	until(t, q, kept.ID, Succeeded)
}

func TestOpen_RejectsAFolderInUse(t *testing.T) {
	dir := t.TempDir()
	open(t, options(dir))
	if _, err := broker.Open(t.Context(), broker.Options{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
}

func TestIsStore_RecognizesAFolderOfJobs(t *testing.T) {
	dir := t.TempDir()
	_, stop := open(t, options(dir))
	stop()
	if !IsStore(dir) || IsStore(filepath.Dir(dir)) {
		t.Error("a folder is taken for another")
	}
}
