package stream

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// echo answers with the model and the image.
func echo(_ context.Context, i Image) Answer {
	return Answer{Status: 200, Body: fmt.Appendf(nil, "%s %s %s", i.Model, i.Explain, i.Data), Version: "v"}
}

func options(judge Judge) Options {
	return Options{Bytes: 4 << 20, VerdictBytes: 4 << 20, Parallel: 4, MaxPending: 100, Judge: judge, Log: slog.New(slog.DiscardHandler)}
}

// work runs a worker until stop is called.
func work(t *testing.T, b *broker.Broker, o Options) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Work(ctx, context.Background(), b, o) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// verdicts returns the verdicts that are stored, by the id of the image. It waits for n.
func verdicts(t *testing.T, b *broker.Broker, n int) map[string]*jetstream.RawStreamMsg {
	t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		s, err := b.JetStream.Stream(t.Context(), verdictStream)
		if err != nil {
			t.Fatal(err)
		}
		state := s.CachedInfo().State
		if int(state.Msgs) < n && time.Since(began) < time.Minute {
			continue
		}
		list := map[string]*jetstream.RawStreamMsg{}
		for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
			m, err := s.GetMsg(t.Context(), seq)
			if err != nil {
				t.Fatal(err)
			}
			id := m.Header.Get(jetstream.MsgIDHeader)
			if list[id] != nil {
				t.Errorf("%s has two verdicts", id)
			}
			list[id] = m
		}
		if len(list) != n {
			t.Fatalf("%d verdicts, want %d", len(list), n)
		}
		return list
	}
}

func TestServe_AnswersRequests(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	a, client := brokertest.Open(t, url, nil), brokertest.Open(t, url, nil)
	stop, err := Serve(a, func(ctx context.Context, i Image) Answer {
		if string(i.Data) == "large" {
			return Answer{Status: 200, Body: bytes.Repeat([]byte("x"), 1<<20)}
		}
		return echo(ctx, i)
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	q := &nats.Msg{Subject: "anomaly.detect.tiles-1.0", Header: nats.Header{HeaderExplain: {"true"}}, Data: []byte("image")}
	r, err := client.Conn.RequestMsg(q, 30*time.Second)
	if err != nil || string(r.Data) != "tiles-1.0 true image" || r.Header.Get(HeaderStatus) != "200" || r.Header.Get(HeaderModel) != "v" {
		t.Fatalf("%+v, %v", r, err)
	}
	r, err = client.Conn.Request("anomaly.detect.m", []byte("large"), 30*time.Second)
	if err != nil || r.Header.Get(HeaderStatus) != "413" || !strings.Contains(string(r.Data), "error") {
		t.Errorf("an answer that is too large: %+v, %v", r, err)
	}
	stop()
	if _, err := client.Conn.Request("anomaly.detect.m", nil, 30*time.Second); err == nil {
		t.Error("an answer after the end")
	}
}

func TestWork_GivesEachImageOneVerdict(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	client := brokertest.Open(t, url, nil)
	var tries sync.Map
	judge := func(ctx context.Context, i Image) Answer {
		n, _ := tries.LoadOrStore(string(i.Data), new(atomic.Int32))
		if try := n.(*atomic.Int32).Add(1); strings.HasPrefix(string(i.Data), "busy") && try == 1 {
			return Answer{Status: 503, Again: true}
		}
		if string(i.Data) == "broken" {
			return Answer{Status: 422, Body: []byte(`{"error":"Not a readable image"}`)}
		}
		return echo(ctx, i)
	}
	for range 2 {
		work(t, brokertest.Open(t, url, nil), options(judge))
	}
	ready(t, client)
	send := func(id, data string) {
		t.Helper()
		m := &nats.Msg{Subject: "anomaly.images.tiles-1.0", Data: []byte(data), Header: nats.Header{}}
		if id != "" {
			m.Header.Set(jetstream.MsgIDHeader, id)
		}
		if _, err := client.JetStream.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		send(fmt.Sprint("id-", i), fmt.Sprint("image ", i))
	}
	send("id-3", "image 3") // sent twice
	send("busy", "busy image")
	send("broken", "broken")
	send("", "without an id")
	send(strings.Repeat("x", maxID+1), "with a long id")
	got := verdicts(t, client, 24)
	for id, want := range map[string][2]string{"id-7": {"200", "tiles-1.0  image 7"}, "busy": {"200", "tiles-1.0  busy image"}, "broken": {"422", `{"error":"Not a readable image"}`},
		"images-23": {"200", "tiles-1.0  without an id"}, "images-24": {"200", "tiles-1.0  with a long id"}} {
		m := got[id]
		if m == nil {
			t.Errorf("%s has no verdict", id)
		} else if m.Subject != "anomaly.verdicts.tiles-1.0" || m.Header.Get(HeaderStatus) != want[0] || string(m.Data) != want[1] {
			t.Errorf("%s: %s %q", id, m.Header.Get(HeaderStatus), m.Data)
		}
	}
	waitEmpty(t, client)
}

// ready waits until the streams are there.
func ready(t *testing.T, b *broker.Broker) {
	t.Helper()
	for range 3000 {
		if _, err := b.JetStream.Stream(t.Context(), imageStream); err == nil {
			if _, err := b.JetStream.Consumer(t.Context(), imageStream, consumerName); err == nil {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("there is no stream")
}

// waitEmpty waits until no image is stored.
func waitEmpty(t *testing.T, b *broker.Broker) {
	t.Helper()
	for range 3000 {
		s, err := b.JetStream.Stream(t.Context(), imageStream)
		if err != nil {
			t.Fatal(err)
		}
		if s.CachedInfo().State.Msgs == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("images are left")
}

// The images of a worker that ends are judged by another, and one that was judged but not
// acknowledged has no second verdict.
func TestWork_JudgesWhatAnotherWorkerLeft(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	client := brokertest.Open(t, url, nil)
	var started atomic.Int32
	ctx, kill := context.WithCancel(t.Context())
	hang := func(ctx context.Context, i Image) Answer {
		started.Add(1)
		<-ctx.Done()
		return Answer{Status: 503, Again: true}
	}
	done := make(chan error, 1)
	dead := brokertest.Open(t, url, nil)
	go func() { done <- Work(ctx, ctx, dead, options(hang)) }()
	ready(t, client)
	for i := range 3 {
		m := &nats.Msg{Subject: "anomaly.images.m", Data: []byte("image"), Header: nats.Header{jetstream.MsgIDHeader: {fmt.Sprint(i)}}}
		if _, err := client.JetStream.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	for started.Load() < 3 {
		time.Sleep(5 * time.Millisecond)
	}
	// The verdict on one of them was stored before.
	v := &nats.Msg{Subject: "anomaly.verdicts.m", Data: []byte("first"), Header: nats.Header{jetstream.MsgIDHeader: {"1"}}}
	if _, err := client.JetStream.PublishMsg(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	kill()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	work(t, brokertest.Open(t, url, nil), options(echo))
	waitEmpty(t, client)
	if got := verdicts(t, client, 3); string(got["1"].Data) != "first" || string(got["2"].Data) != "m  image" {
		t.Errorf("%q, %q", got["1"].Data, got["2"].Data)
	}
}

// A publisher that is faster than the workers gets an error, not the servers' disks.
func TestImages_AreRejectedWhenTooManyWait(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	client := brokertest.Open(t, url, nil)
	o := options(echo)
	if _, err := Prepare(t.Context(), client, o); err != nil {
		t.Fatal(err)
	}
	image := make([]byte, 512<<10)
	sent := 0
	var err error
	for ; err == nil && sent < 100; sent++ {
		_, err = client.JetStream.Publish(t.Context(), "anomaly.images.m", image)
	}
	if err == nil || !strings.Contains(err.Error(), "maximum bytes exceeded") || sent < 4 {
		t.Fatalf("%d images, %v", sent, err)
	}
	work(t, client, o)
	waitEmpty(t, client)
	if _, err := client.JetStream.Publish(t.Context(), "anomaly.images.m", []byte("x")); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func TestWork_GoesOnWhenTheServerRestarts(t *testing.T) {
	s := brokertest.InProcess(t)
	client := brokertest.Open(t, s.URL(), nil)
	work(t, brokertest.Open(t, s.URL(), nil), options(echo))
	ready(t, client)
	send := func(id string) {
		t.Helper()
		m := &nats.Msg{Subject: "anomaly.images.m", Data: []byte(id), Header: nats.Header{jetstream.MsgIDHeader: {id}}}
		if _, err := client.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	send("before")
	verdicts(t, client, 1)
	s.Stop()
	s.Start()
	send("after")
	verdicts(t, client, 2)
}

// An image that ends the process of each worker must not go to all of them for ever.
func TestWork_GivesUpAnImageThatEndsItsWorkers(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	client := brokertest.Open(t, url, nil)
	judged := make(chan string, 100)
	o := options(func(ctx context.Context, i Image) Answer {
		judged <- string(i.Data)
		return echo(ctx, i)
	})
	c, err := Prepare(t.Context(), client, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.JetStream.Publish(t.Context(), "anomaly.images.m", []byte("deadly"), jetstream.WithMsgID("deadly")); err != nil {
		t.Fatal(err)
	}
	for range maxStarts { // workers that end
		m, err := c.Next(jetstream.FetchMaxWait(20 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Nak(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.JetStream.Publish(t.Context(), "anomaly.images.m", []byte("harmless"), jetstream.WithMsgID("harmless")); err != nil {
		t.Fatal(err)
	}
	work(t, brokertest.Open(t, url, nil), o)
	list := verdicts(t, client, 2)
	if m := list["deadly"]; m == nil || m.Header.Get(HeaderStatus) != "500" || !strings.Contains(string(m.Data), "error") {
		t.Errorf("the verdict on the image: %+v", m)
	}
	if m := list["harmless"]; m == nil || m.Header.Get(HeaderStatus) != "200" {
		t.Errorf("the verdict on the next image: %+v", m)
	}
	if got := <-judged; got != "harmless" || len(judged) > 0 {
		t.Errorf("%s was judged, and %d more", got, len(judged))
	}
}

func TestPrepare_RecognizesAnImageAsLongAsItsVerdict(t *testing.T) {
	b := brokertest.Open(t, brokertest.InProcess(t).URL(), nil)
	if _, err := Prepare(t.Context(), b, options(echo)); err != nil {
		t.Fatal(err)
	}
	var windows []time.Duration
	for _, name := range []string{imageStream, verdictStream} {
		s, err := b.JetStream.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		windows = append(windows, s.CachedInfo().Config.Duplicates)
	}
	if windows[0] < windows[1] {
		t.Errorf("an image with the id of another one is accepted after %v, and its verdict dropped for %v", windows[0], windows[1])
	}
}
