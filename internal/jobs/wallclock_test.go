package jobs

import (
	"testing"
	"time"
)

// setClock makes the wall clock differ from the machine's until the test ends.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	wall = func() time.Time { return time.Now().Add(by) }
	t.Cleanup(func() { wall = time.Now })
}

func TestQueue_KeepsItsOrderWhenTheClockIsSetBack(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	first := submit(t, q, "a")
	begun := make(chan Job)
	end := run(q, block(begun))
	<-begun
	setClock(t, -24*time.Hour)
	second := submit(t, q, "b")
	if !second.CreatedAt.Before(first.CreatedAt) {
		t.Fatal("the clock was not set back")
	}
	if _, _, err := q.Delete(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	<-begun
	if _, _, err := q.Delete(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	end()
	check := func() {
		t.Helper()
		list := q.List()
		if len(list) != 2 || list[0].ID != second.ID {
			t.Fatalf("%+v, expected the newest first", list)
		}
		for _, j := range list {
			if j.StartedAt == nil || j.StartedAt.Before(j.CreatedAt) || j.EndedAt.Before(*j.StartedAt) {
				t.Errorf("created at %s, started at %s, ended at %s", j.CreatedAt, j.StartedAt, j.EndedAt)
			}
		}
	}
	check()
	stop()
	q, _ = open(t, options(dir))
	check()
	// The job that ended first is the one to remove, although its end has a later time.
	q.o.MaxJobs = 2
	third := submit(t, q, "c")
	if list := q.List(); len(list) != 2 || list[0].ID != third.ID || list[1].ID != second.ID {
		t.Errorf("%+v", list)
	}
}

func TestQueue_KeepsItsJobsWhenTheClockIsSetForward(t *testing.T) {
	o := options(t.TempDir())
	o.MaxAge = time.Hour
	q, _ := open(t, o)
	end := run(q, double)
	defer end()
	j := until(t, q, submit(t, q, "a").ID, Succeeded)
	setClock(t, 24*time.Hour)
	q.swept = time.Time{}
	until(t, q, submit(t, q, "b").ID, Succeeded)
	if _, err := q.Get(j.ID); err != nil {
		t.Errorf("a job that ended a moment ago: %v", err)
	}
}

func TestOpen_CountsTheAgeOfJobsFromTheirEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		by   time.Duration
		kept bool
	}{{"older than the limit", 2 * time.Hour, false}, {"younger", 30 * time.Minute, true}, {"of the future", -24 * time.Hour, true}} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t.TempDir())
			o.MaxAge = time.Hour
			q, stop := open(t, o)
			end := run(q, double)
			j := until(t, q, submit(t, q, "a").ID, Succeeded)
			end()
			stop()
			setClock(t, c.by)
			q, _ = open(t, o)
			submit(t, q, "b")
			if _, err := q.Get(j.ID); (err == nil) != c.kept {
				t.Errorf("kept: %t, expected %t", err == nil, c.kept)
			}
		})
	}
}
