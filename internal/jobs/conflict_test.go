package jobs

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/nats-io/nats.go/jetstream"
)

// Two nodes may receive requests with the same id at the same time: a client, or a proxy, has
// sent its request again.
func TestCluster_KeepsTheFilesOfAJobWhoseIDAnotherNodeGetsToo(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	request := func(text string) Request {
		r := upload(text)
		r.ID, r.Attached = "chosen-by-the-client", true
		return r
	}
	first, err := a.Submit(t.Context(), request("abc"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Submit(t.Context(), request("other")); !errors.Is(err, ErrExists) {
		t.Fatalf("the second request: %v", err)
	}
	soon(t, "the files of the first request alone are stored", func() bool {
		names, err := b.files.List(t.Context(), "")
		return err == nil && len(names) == 1
	})
	c, err := a.Upload(t.Context(), first.ID, "zipFile")
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(c); err != nil || string(data) != "abc" {
		t.Errorf("the first request's file has %q, %v", data, err)
	}
}

func TestWithdraw_LeavesTheJobOfAnotherNode(t *testing.T) {
	s := brokertest.InProcess(t)
	a, b := join(t, s.URL()), join(t, s.URL())
	r := upload("abc")
	r.Attached = true
	j, err := a.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Withdraw(t.Context(), j.ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("the job of another node: %v", err)
	}
	if got, err := a.Get(j.ID); err != nil || got.State != Queued {
		t.Errorf("it is %+v, %v", got, err)
	}
	if err := a.Withdraw(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Get(j.ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("after it was withdrawn: %v", err)
	}
}

// overtaken is a store whose deletions another node overtakes.
type overtaken struct {
	jetstream.KeyValue
	before func(key string)
}

func (s *overtaken) Delete(ctx context.Context, key string, o ...jetstream.KVDeleteOpt) error {
	if f := s.before; f != nil {
		s.before = nil
		f(key)
	}
	return s.KeyValue.Delete(ctx, key, o...)
}

func TestDelete_RemovesAJobThatAnotherNodeChangesAtTheSameTime(t *testing.T) {
	for name, c := range map[string]struct {
		other func(ctx context.Context, q *Queue, id string) error
		want  error
	}{
		"removed": {func(ctx context.Context, q *Queue, id string) error { return q.remove(ctx, id) }, ErrUnknown},
		"changed": {func(ctx context.Context, q *Queue, id string) error {
			e, err := q.entry(id)
			if err != nil {
				return err
			}
			return q.change(ctx, e, func(r *record) error { r.Callback = ""; return nil })
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := brokertest.InProcess(t)
			a, b := join(t, s.URL()), join(t, s.URL())
			j := submit(t, a, "abc")
			if _, _, err := a.Delete(t.Context(), j.ID); err != nil { // cancelled
				t.Fatal(err)
			}
			until(t, b, j.ID, Cancelled)
			a.states = &overtaken{a.states, func(id string) {
				if err := c.other(t.Context(), b, id); err != nil {
					t.Error(err)
				}
			}}
			if err := a.remove(t.Context(), j.ID); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if _, err := b.b.Get(t.Context(), b.states, j.ID); !errors.Is(err, jetstream.ErrKeyNotFound) {
				t.Errorf("the record: %v", err)
			}
		})
	}
}
