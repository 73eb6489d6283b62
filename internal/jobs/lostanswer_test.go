package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/nats-io/nats.go"
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

// unclear is a store of records that stores a new one, but reports that it does not know.
type unclear struct{ jetstream.KeyValue }

func (s unclear) Create(ctx context.Context, key string, value []byte, o ...jetstream.KVCreateOpt) (uint64, error) {
	if _, err := s.KeyValue.Create(ctx, key, value, o...); err != nil {
		return 0, err
	}
	return 0, nats.ErrConnectionClosed
}

// A job whose submission was not answered must be able to run, and is found by its key.
func TestCluster_KeepsAJobThatMayHaveBeenAccepted(t *testing.T) {
	q := join(t, brokertest.InProcess(t).URL())
	store := q.states
	q.states = unclear{store}
	if _, err := q.Submit(t.Context(), keyed("abc", "x", "1")); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Fatal(err)
	}
	q.states = store
	j, before, err := q.SubmitOnce(t.Context(), keyed("abc", "x", "1"))
	if err != nil || !before {
		t.Fatalf("%+v, %t, %v", j, before, err)
	}
	k := newKeeper(q, 100*time.Millisecond, time.Hour) // its message was not sent
	for range 2 {
		if err := k.keep(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
	end := run(q, double)
	defer end()
	until(t, q, j.ID, Succeeded)
	if m := modelOf(t, q, j.ID); m != "abcabc" {
		t.Errorf("the model is %q", m)
	}
}

func TestCluster_ReportsServersThatAreFull(t *testing.T) {
	q := join(t, brokertest.InProcess(t).URL())
	s, err := q.b.JetStream.Stream(t.Context(), "OBJ_jobs")
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.MaxBytes = 2 << 20
	if _, err := q.b.JetStream.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Submit(t.Context(), upload(strings.Repeat("x", 3<<20))); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a submission: %v", err)
	}
	soon(t, "nothing is kept", func() bool {
		subjects, _, err := q.b.Subjects(t.Context(), s, ">")
		return err == nil && len(subjects) == 0 && len(q.List()) == 0
	})
	j := submit(t, q, "abc")
	end := run(q, Worker{Run: func(context.Context, *Task) (Result, error) {
		return Result{Model: strings.NewReader(strings.Repeat("x", 3<<20))}, nil
	}})
	defer end()
	if got := until(t, q, j.ID, Failed); !strings.Contains(*got.Error, "too little space") {
		t.Errorf("%s", *got.Error)
	}
}

// The servers may lose a consumer with what it has delivered, or remove it by mistake.
func TestCluster_KeepsAJobWhoseConsumerIsLost(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	begun, release := make(chan Job, 1), make(chan struct{})
	endA := run(a, slow(begun, release, "the model"))
	defer endA()
	j := submit(t, a, "abc")
	<-begun
	if err := a.work[KindTrain].DeleteConsumer(t.Context(), "worker-"+turnOf("")); err != nil {
		t.Fatal(err)
	}
	endB := run(b, double) // makes it again, and gets the message
	defer endB()
	time.Sleep(1500 * time.Millisecond)
	next := submit(t, a, "def")
	until(t, a, next.ID, Succeeded)
	close(release)
	if got := until(t, b, j.ID, Succeeded); got.Attempts != 1 {
		t.Errorf("%+v", got)
	}
	if m := modelOf(t, b, j.ID); m != "the model" {
		t.Errorf("the model is %q", m)
	}
}

// A node that ends between the result and the record leaves a file that nobody needs.
func TestKeeper_RemovesFilesThatNobodyNeeds(t *testing.T) {
	q := join(t, brokertest.InProcess(t).URL())
	ended, running := submit(t, q, "abc"), submit(t, q, "def")
	end := run(q, double)
	until(t, q, ended.ID, Succeeded)
	end()
	for _, name := range []string{ended.ID + "/model.7", "nobody/zipFile"} {
		if _, _, err := q.files.Put(t.Context(), name, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := q.saved.Put(t.Context(), "nobody/state", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	k := newKeeper(q, time.Hour, time.Hour)
	k.files, k.saved = q.files.Tidier(100*time.Millisecond), q.saved.Tidier(100*time.Millisecond)
	for range 2 {
		if err := k.tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
	names, err := q.files.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	want := 1 // the model of the ended job
	if got, _ := q.Get(running.ID); got.State == Succeeded || got.State == Queued {
		want++ // its model, or its upload
	}
	if len(names) != want {
		t.Errorf("files %v, want %d", names, want)
	}
	if names, err := q.saved.List(t.Context(), ""); err != nil || len(names) != 0 {
		t.Errorf("checkpoints %v, %v", names, err)
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
