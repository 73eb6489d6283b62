package jobs

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/nats-io/nats.go/jetstream"
)

// forgetful is a store of records that stores each first write of a state, but loses its
// answer.
type forgetful struct {
	jetstream.KeyValue
	mu   sync.Mutex
	lost map[State]int
}

func (s *forgetful) lose(value []byte) bool {
	var r record
	if json.Unmarshal(value, &r) != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost[r.State]++
	return s.lost[r.State] == 1
}

func (s *forgetful) Create(ctx context.Context, key string, value []byte, o ...jetstream.KVCreateOpt) (uint64, error) {
	revision, err := s.KeyValue.Create(ctx, key, value, o...)
	if s.lose(value) {
		return 0, context.DeadlineExceeded
	}
	return revision, err
}

func (s *forgetful) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	next, err := s.KeyValue.Update(ctx, key, value, revision)
	if s.lose(value) {
		return 0, context.DeadlineExceeded
	}
	return next, err
}

func TestCluster_CountsAChangeOnceWhoseAnswerIsLost(t *testing.T) {
	q := join(t, brokertest.InProcess(t).URL())
	store := &forgetful{KeyValue: q.states, lost: map[State]int{}}
	q.states = store
	end := run(q, double)
	j := submit(t, q, "abc")
	if got := until(t, q, j.ID, Succeeded); got.Attempts != 1 {
		t.Errorf("%+v", got)
	}
	end() // the answer of the last write has arrived
	if m := modelOf(t, q, j.ID); m != "abcabc" {
		t.Errorf("the model is %q", m)
	}
	for _, s := range []State{Queued, Running, Succeeded} {
		if store.lost[s] != 2 {
			t.Errorf("the state %s was written %d times, want 2: the answer of the first was lost", s, store.lost[s])
		}
	}
	if n := len(q.List()); n != 1 {
		t.Errorf("%d jobs", n)
	}
}

// A program of a later version may add members to records.
func TestRecord_KeepsMembersOfALaterVersion(t *testing.T) {
	q := join(t, brokertest.InProcess(t).URL())
	j := submit(t, q, "abc")
	v, err := q.states.Get(t.Context(), j.ID)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(v.Value(), &all); err != nil {
		t.Fatal(err)
	}
	all["later"] = map[string]any{"a": []any{1.0, "b"}}
	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.states.Update(t.Context(), j.ID, data, v.Revision()); err != nil {
		t.Fatal(err)
	}
	end := run(q, double)
	defer end()
	until(t, q, j.ID, Succeeded)
	if v, err = q.states.Get(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(v.Value(), &all); err != nil {
		t.Fatal(err)
	}
	if got, _ := json.Marshal(all["later"]); string(got) != `{"a":[1,"b"]}` || all["state"] != "succeeded" {
		t.Errorf("the record is %s", v.Value())
	}
}

func TestKeeper_SendsTheMessageOfAJobThatHasNone(t *testing.T) {
	q := join(t, brokertest.InProcess(t).URL())
	j := submit(t, q, "abc")
	if err := q.work[KindTrain].Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The id of the message is known for a while.
	if err := q.b.JetStream.DeleteStream(t.Context(), workStream); err != nil {
		t.Fatal(err)
	}
	delete(q.work, KindTrain)
	k := newKeeper(q, 100*time.Millisecond, time.Hour)
	for range 2 {
		if err := k.keep(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
	end := run(q, double)
	defer end()
	until(t, q, j.ID, Succeeded)
}

func TestKeeper_RemovesTheMessagesOfJobsThatAreNotThere(t *testing.T) {
	q := join(t, brokertest.InProcess(t).URL())
	cancelled, waiting := submit(t, q, "abc"), submit(t, q, "def")
	if _, _, err := q.Delete(t.Context(), cancelled.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := q.b.JetStream.Publish(t.Context(), workPrefix(KindTrain)+"turn.nobody", nil); err != nil {
		t.Fatal(err)
	}
	k := newKeeper(q, 100*time.Millisecond, time.Hour)
	for range 2 {
		if err := k.keep(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
	left, err := q.waiting(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || left[workPrefix(KindTrain)+turnOf("")+"."+waiting.ID] != 1 {
		t.Errorf("messages: %v, want that of %s", left, waiting.ID)
	}
}

func TestKeeper_RemovesAttachedJobsThatNoRequestWaitsFor(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	request := upload("abc")
	request.Attached = true
	attended, err := a.Submit(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Attend(attended.ID, time.Time{})()
	request = upload("abc")
	request.Attached = true
	left, err := a.Submit(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	other := submit(t, a, "abc")
	k := newKeeper(b, time.Hour, 100*time.Millisecond)
	for range 2 {
		if err := k.keep(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
	for id, want := range map[string]bool{attended.ID: true, left.ID: false, other.ID: true} {
		if _, err := b.Get(id); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %t", id, err, want)
		}
	}
}
