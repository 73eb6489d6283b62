package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/stream"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Requests and the stream of images have the answers of HTTP.
func TestStreamed_AnswersAsHTTPDoes(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	s := startNode(t, url, nil)
	w := startNode(t, url, func(o *Options) { o.ProbesOnly, o.Work = true, []string{WorkStream} })
	s.mustPut(t, "tiles-1.0", trained(t)[exporter.BundleFile])
	client := brokertest.Open(t, url, nil)
	eventually(t, "the worker reads the stream", func() bool {
		_, err := client.JetStream.Consumer(t.Context(), "images", "judges")
		return err == nil
	})
	good, crack := tile(t, testGood), tile(t, testCrack)
	cases := []struct {
		name, model, explain string
		image                []byte
		status               int
	}{
		{"normal", "tiles-1.0", "", good, 200},
		{"anomalous", "tiles-1.0", "", crack, 200},
		{"explained", "tiles-1.0", "true", crack, 200},
		{"overlay", "tiles-1.0", "overlay", crack, 200},
		{"no image", "tiles-1.0", "", []byte("no image"), 422},
		{"empty", "tiles-1.0", "", nil, 400},
		{"unknown model", "other", "", good, 404},
		{"invalid name", "Tiles", "", good, 400},
		{"invalid field", "tiles-1.0", "perhaps", good, 400},
	}
	for i, c := range cases {
		id := fmt.Sprint("image ", i)
		send := func(subject string) *nats.Msg {
			m := &nats.Msg{Subject: subject + c.model, Data: c.image, Header: nats.Header{jetstream.MsgIDHeader: {id}}}
			if c.explain != "" {
				m.Header.Set(stream.HeaderExplain, c.explain)
			}
			return m
		}
		a, err := client.Conn.RequestMsg(send("anomaly.detect."), time.Minute)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := a.Header.Get(stream.HeaderStatus); got != fmt.Sprint(c.status) {
			t.Errorf("%s: status %s: %.200s", c.name, got, a.Data)
		}
		if c.status == 200 {
			parts := []part{file("imageFile", "i.jpg", c.image)}
			if c.explain != "" {
				parts = append(parts, text("explain", c.explain))
			}
			want := s.post(t, "/models/tiles-1.0/detect", parts...)
			if !bytes.Equal(bytes.TrimSpace(want.body), a.Data) || want.header.Get(headerModelSHA256) != a.Header.Get(stream.HeaderModel) {
				t.Errorf("%s: %.300s\nover HTTP: %.300s", c.name, a.Data, want.body)
			}
		} else if !json.Valid(a.Data) || !strings.Contains(string(a.Data), `"error"`) {
			t.Errorf("%s: %.200s", c.name, a.Data)
		}
		if _, err := client.JetStream.PublishMsg(t.Context(), send("anomaly.images.")); err != nil {
			t.Fatal(err)
		}
		var v *jetstream.RawStreamMsg
		eventually(t, c.name+" has a verdict", func() bool {
			verdicts, err := client.JetStream.Stream(t.Context(), "verdicts")
			if err != nil {
				t.Fatal(err)
			}
			v, err = verdicts.GetLastMsgForSubject(t.Context(), "anomaly.verdicts."+c.model)
			return err == nil && v.Header.Get(jetstream.MsgIDHeader) == id
		})
		if !bytes.Equal(v.Data, a.Data) || v.Header.Get(stream.HeaderStatus) != a.Header.Get(stream.HeaderStatus) || v.Header.Get(stream.HeaderModel) != a.Header.Get(stream.HeaderModel) {
			t.Errorf("%s: verdict %.300s\nanswer %.300s", c.name, v.Data, a.Data)
		}
	}
	if w.cache.Stats().Models != 1 {
		t.Error("the worker has not judged itself")
	}
	for _, n := range []*service{s, w} {
		if free := n.memory.available.Load(); free != n.memory.total {
			t.Errorf("%d bytes are still reserved", n.memory.total-free)
		}
	}
}
