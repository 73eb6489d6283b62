package broker_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/nats-io/nats.go/jetstream"
)

// both runs a test with a server inside the process and with one that listens.
func both(t *testing.T, f func(t *testing.T, b *broker.Broker)) {
	t.Run("inside the process", func(t *testing.T) {
		b, err := broker.Open(t.Context(), broker.Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		f(t, b)
	})
	t.Run("cluster", func(t *testing.T) { f(t, brokertest.Open(t, brokertest.InProcess(t).URL(), nil)) })
}

func TestFiles_AreReadAsTheyWereWritten(t *testing.T) {
	both(t, func(t *testing.T, b *broker.Broker) {
		files, err := b.Files(t.Context(), "things")
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{0, 1, 512 << 10, 1200 << 10} {
			data := bytes.Repeat([]byte("0123456"), size/7+1)[:size]
			name := fmt.Sprintf("a/%d", size)
			for range 2 { // the second replaces the first
				n, sum, err := files.Put(t.Context(), name, bytes.NewReader(data))
				want := sha256.Sum256(data)
				if err != nil || n != int64(size) || sum != hex.EncodeToString(want[:]) {
					t.Fatalf("put %d bytes: %d, %s, %v", size, n, sum, err)
				}
			}
			c, err := files.Open(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes were read as %d, %v", size, len(got), err)
			}
			info, err := files.Info(t.Context(), name)
			if err != nil || info.Bytes != int64(size) || len(info.SHA256) != 64 {
				t.Fatalf("info: %+v, %v", info, err)
			}
		}
		if names, err := files.List(t.Context(), "a/"); err != nil || len(names) != 4 {
			t.Fatalf("list: %v, %v", names, err)
		}
		if err := files.Remove(t.Context(), "a/1"); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Open(t.Context(), "a/1"); !errors.Is(err, broker.ErrNotFound) {
			t.Fatalf("a removed file: %v", err)
		}
		if removed, err := files.Tidy(t.Context(), func(string) bool { return true }); err != nil || removed != 0 {
			t.Fatalf("%d subjects were left behind, %v", removed, err)
		}
	})
}

func TestTidier_RemovesOnlyWhatDoesNotGrow(t *testing.T) {
	b := brokertest.Open(t, brokertest.InProcess(t).URL(), nil)
	files, err := b.Files(t.Context(), "things")
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	put := make(chan error, 1)
	go func() {
		_, _, err := files.Put(t.Context(), "kept", r)
		put <- err
	}()
	chunk := make([]byte, 512<<10)
	tidier := files.Tidier(300 * time.Millisecond)
	keep := func(name string) bool { return name == "kept" }
	if _, _, err := files.Put(t.Context(), "other", bytes.NewReader(chunk)); err != nil {
		t.Fatal(err)
	}
	removed := 0
	for range 8 {
		if _, err := w.Write(chunk); err != nil {
			t.Fatal(err)
		}
		n, err := tidier.Tidy(t.Context(), keep)
		if err != nil {
			t.Fatal(err)
		}
		removed += n
		time.Sleep(100 * time.Millisecond)
	}
	_ = w.Close() // never fails
	if err := <-put; err != nil {
		t.Fatal(err)
	}
	if removed != 2 { // description and chunks of the other file
		t.Errorf("%d subjects were removed, want 2", removed)
	}
	c, err := files.Open(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(c); err != nil || len(data) != 8*len(chunk) {
		t.Errorf("the file that was written meanwhile has %d bytes, %v", len(data), err)
	}
}

func TestUpdate_ChangesOnlyTheExpectedRevision(t *testing.T) {
	both(t, func(t *testing.T, b *broker.Broker) {
		ctx := t.Context()
		kv, err := b.KeyValue(ctx, jetstream.KeyValueConfig{Bucket: "values"})
		if err != nil {
			t.Fatal(err)
		}
		first, err := b.Update(ctx, kv, "a", []byte("1"), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Update(ctx, kv, "a", []byte("2"), 0); !errors.Is(err, jetstream.ErrKeyExists) {
			t.Errorf("a second creation: %v", err)
		}
		second, err := b.Update(ctx, kv, "a", []byte("2"), first)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Update(ctx, kv, "a", []byte("3"), first); !errors.Is(err, jetstream.ErrKeyExists) {
			t.Errorf("an old revision: %v", err)
		}
		if err := b.Delete(ctx, kv, "a", first); !errors.Is(err, jetstream.ErrKeyExists) {
			t.Errorf("deletion of an old revision: %v", err)
		}
		if err := b.Delete(ctx, kv, "a", second); err != nil {
			t.Error(err)
		}
		if _, err := b.Get(ctx, kv, "a"); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Errorf("a deleted key: %v", err)
		}
		if _, err := b.Update(ctx, kv, "a", []byte("4"), 0); err != nil {
			t.Errorf("a key is created again: %v", err)
		}
	})
}

// A watch that went on with what it had read would miss what happened while the server was
// away.
func TestWatch_MissesNothingWhenTheServerRestarts(t *testing.T) {
	s := brokertest.InProcess(t)
	b, other := brokertest.Open(t, s.URL(), nil), brokertest.Open(t, s.URL(), nil)
	kv, err := b.KeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "values"})
	if err != nil {
		t.Fatal(err)
	}
	set := func(key, value string) {
		t.Helper()
		err := b.Retry(t.Context(), func(ctx context.Context) error {
			_, err := kv.Put(ctx, key, []byte(value))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	set("a", "1")
	set("b", "1")
	var mu sync.Mutex
	seen := map[string]string{}
	var current atomic.Bool
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		other.Watch(ctx, "values", func(c broker.Change) {
			mu.Lock()
			defer mu.Unlock()
			if c.Removed {
				delete(seen, c.Key)
				return
			}
			seen[c.Key] = string(c.Value)
		}, func() { current.Store(true) })
	}()
	defer func() { stop(); <-done }()
	wait := func(what string, ok func() bool) {
		t.Helper()
		for range 300 {
			mu.Lock()
			good := ok()
			mu.Unlock()
			if good {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("%s; seen: %v", what, seen)
	}
	wait("the first values are not seen", func() bool { return seen["a"] == "1" && seen["b"] == "1" })
	wait("the watch is not complete", current.Load)
	set("a", "2")
	wait("a change is not seen", func() bool { return seen["a"] == "2" })
	s.Stop()
	s.Start()
	set("a", "3")
	set("c", "1")
	if err := b.Delete(t.Context(), kv, "b", 0); err != nil {
		t.Fatal(err)
	}
	wait("changes after a restart are not seen", func() bool { return seen["a"] == "3" && seen["c"] == "1" && seen["b"] == "" })
}

func TestLead_RunsInOneProcessAtATime(t *testing.T) {
	s := brokertest.InProcess(t)
	var running, most, calls atomic.Int32
	var wg sync.WaitGroup
	first, stopFirst := context.WithCancel(t.Context())
	second, stopSecond := context.WithCancel(t.Context())
	for _, ctx := range []context.Context{first, second} {
		b := brokertest.Open(t, s.URL(), nil)
		wg.Go(func() {
			b.Lead(ctx, "work", func(ctx context.Context) {
				calls.Add(1)
				most.Store(max(most.Load(), running.Add(1)))
				<-ctx.Done()
				running.Add(-1)
			})
		})
		time.Sleep(300 * time.Millisecond) // the first takes the lease
	}
	stopFirst() // and gives it back, so that the other need not wait until it is free
	for range 200 {
		if calls.Load() == 2 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	stopSecond()
	wg.Wait()
	if calls.Load() != 2 || most.Load() != 1 {
		t.Errorf("%d calls, %d at once, want 2 and 1", calls.Load(), most.Load())
	}
}

func TestRetry_GivesUpWithinItsTime(t *testing.T) {
	s := brokertest.InProcess(t)
	b := brokertest.Open(t, s.URL(), nil)
	kv, err := b.KeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "values"})
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	defer s.Start()
	get := func(ctx context.Context) error {
		_, err := kv.Get(ctx, "a")
		return err
	}
	own := errors.New("the caller's cause")
	for name, test := range map[string]struct {
		limit time.Duration
		ctx   func() (context.Context, context.CancelFunc)
		want  error
	}{
		"its own limit": {time.Second, func() (context.Context, context.CancelFunc) { return t.Context(), func() {} }, broker.ErrUnavailable},
		"the caller's":  {time.Minute, func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), time.Second) }, broker.ErrUnavailable},
		"a limit with a name": {time.Minute, func() (context.Context, context.CancelFunc) {
			return context.WithTimeoutCause(t.Context(), time.Second, own)
		}, own},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := test.ctx()
			defer cancel()
			began := time.Now()
			err := b.RetryFor(ctx, test.limit, get)
			if !errors.Is(err, test.want) || time.Since(began) > 3*time.Second {
				t.Errorf("%v after %s, want %v", err, time.Since(began), test.want)
			}
		})
	}
}

func TestOpen_RejectsAFolderThatIsInUse(t *testing.T) {
	dir := t.TempDir()
	b, err := broker.Open(t.Context(), broker.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := broker.Open(t.Context(), broker.Options{Dir: dir}); !errors.Is(err, broker.ErrInUse) {
		t.Errorf("error: %v", err)
	}
}
