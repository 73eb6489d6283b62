package broker_test

import (
	"testing"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestPublishFirst_KeepsTheFirstMessageOfASubject(t *testing.T) {
	b := brokertest.Open(t, brokertest.InProcess(t).URL(), nil)
	s, err := b.Stream(t.Context(), jetstream.StreamConfig{Name: "s", Subjects: []string{"s.*"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first", "second"} {
		for _, subject := range []string{"s.a", "s.b"} {
			if err := b.PublishFirst(t.Context(), &nats.Msg{Subject: subject, Data: []byte(text)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	m, err := s.GetLastMsgForSubject(t.Context(), "s.a")
	if err != nil || string(m.Data) != "first" || m.Sequence != 1 {
		t.Errorf("%+v, %v", m, err)
	}
}
