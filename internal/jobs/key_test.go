package jobs

import (
	"errors"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
)

// keyed is upload with a key.
func keyed(text, caller, key string) Request {
	r := upload(text)
	r.Caller, r.Key = caller, key
	return r
}

func TestSubmitOnce_AcceptsAKeyOnce(t *testing.T) {
	s := brokertest.InProcess(t)
	clustered := []*Queue{join(t, s.URL()), join(t, s.URL())}
	alone, _ := open(t, options(t.TempDir()))
	for name, queues := range map[string][]*Queue{"in a folder": {alone, alone}, "by two nodes": clustered} {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			ids, again := make([]string, 6), make([]bool, 6)
			for i := range ids {
				wg.Go(func() {
					j, before, err := queues[i%2].SubmitOnce(t.Context(), keyed("abc", "x", "1"))
					if err != nil {
						t.Error(err)
					}
					ids[i], again[i] = j.ID, before
				})
			}
			wg.Wait()
			first := 0
			for i := range ids {
				if !again[i] {
					first++
				}
				if ids[i] != ids[0] {
					t.Errorf("jobs %s and %s", ids[i], ids[0])
				}
			}
			if first != 1 {
				t.Errorf("%d submissions were the first", first)
			}
			if _, _, err := queues[1].SubmitOnce(t.Context(), keyed("other", "x", "1")); !errors.Is(err, ErrKeyReused) {
				t.Errorf("another upload with the key: %v", err)
			}
			other, before, err := queues[1].SubmitOnce(t.Context(), keyed("abc", "y", "1"))
			if err != nil || before || other.ID == ids[0] {
				t.Errorf("the key of another caller: %+v, %t, %v", other, before, err)
			}
			end := run(queues[1], double)
			until(t, queues[0], ids[0], Succeeded)
			until(t, queues[0], other.ID, Succeeded)
			end()
			if j, before, err := queues[0].SubmitOnce(t.Context(), keyed("abc", "x", "1")); err != nil || !before || j.State != Succeeded {
				t.Errorf("the key after the end of its job: %+v, %t, %v", j, before, err)
			}
			soon(t, "only the models are stored", func() bool {
				names, err := queues[0].files.List(t.Context(), "")
				return err == nil && len(names) == 2
			})
		})
	}
}

func TestSubmitOnce_AcceptsTheKeyOfARemovedJobAgain(t *testing.T) {
	s := brokertest.InProcess(t)
	for name, q := range map[string]*Queue{"folder": func() *Queue { q, _ := open(t, options(t.TempDir())); return q }(), "cluster": join(t, s.URL())} {
		t.Run(name, func(t *testing.T) {
			j, _, err := q.SubmitOnce(t.Context(), keyed("abc", "x", "1"))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, _, err := q.Delete(t.Context(), j.ID); err != nil {
					t.Fatal(err)
				}
			}
			if _, before, err := q.SubmitOnce(t.Context(), keyed("other", "x", "1")); err != nil || before {
				t.Error(before, err)
			}
		})
	}
}
