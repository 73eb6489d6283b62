package jobs

import (
	"testing"
	"time"
)

// Delete does not wait for the removal of files, which the next Open completes.
func TestOpen_RemovesTheFilesOfDeletedJobs(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	waiting := submit(t, q, "abc")
	end := run(q, double)
	done := until(t, q, waiting.ID, Succeeded)
	end()
	waiting = submit(t, q, "def")
	q.endClean() // the process ends before the files are removed
	for _, id := range []string{done.ID, waiting.ID} {
		if _, _, err := q.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if n := stored(t, q); n != 4 {
		t.Fatalf("%d subjects are stored, expected those of a model and of an upload", n)
	}
	stop()
	q, _ = open(t, options(dir))
	if n := stored(t, q); n != 0 {
		t.Errorf("%d subjects are stored", n)
	}
	if list := q.List(); len(list) != 1 || list[0].State != Cancelled {
		t.Errorf("%+v", list)
	}
}

// A store whose disk was full does not answer. The job is then taken up by the next
// process, as one that was killed.
func TestRun_EndsSoonWithAStoreThatDoesNotAnswer(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	j := submit(t, q, "abc")
	begun := make(chan Job)
	end := run(q, block(begun))
	<-begun
	q.b.Server().Shutdown()
	began := time.Now()
	end()
	stop()
	if took := time.Since(began); took > 2*giveBackTime {
		t.Errorf("it took %s", took)
	}
	q, _ = open(t, options(dir))
	if got, err := q.Get(j.ID); err != nil || got.State != Queued || q.jobs[j.ID].record.Deaths != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	end = run(q, double)
	defer end()
	until(t, q, j.ID, Succeeded)
}
