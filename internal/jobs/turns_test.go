package jobs

import (
	"context"
	"slices"
	"strings"
	"testing"
)

func TestRun_TakesTheCallersInTurns(t *testing.T) {
	dir := t.TempDir()
	q, stop := open(t, options(dir))
	names := map[string]string{} // of the jobs, by id
	for _, name := range []string{"a1", "a2", "a3", "a4", "b1", "b2", "c1"} {
		r := upload(name)
		r.Caller = name[:1]
		j, err := q.Submit(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		names[j.ID] = name
	}
	stop() // the callers are known to the next process
	q, _ = open(t, options(dir))
	var got []string
	end := run(q, Worker{Run: func(_ context.Context, task *Task) (Result, error) {
		got = append(got, names[task.Job.ID])
		return Result{Model: strings.NewReader("m")}, nil
	}})
	for id := range names {
		until(t, q, id, Succeeded)
	}
	end()
	first := got[:3]
	slices.Sort(first) // the next process knows no order of the callers
	if want := []string{"a1", "b1", "c1"}; !slices.Equal(first, want) {
		t.Errorf("the first of each caller are %v, expected %v", first, want)
	}
	rest := got[3:5]
	slices.Sort(rest)
	if !slices.Equal(rest, []string{"a2", "b2"}) || !slices.Equal(got[5:], []string{"a3", "a4"}) {
		t.Errorf("%v", got)
	}
}
