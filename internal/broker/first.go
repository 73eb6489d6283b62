package broker

import (
	"context"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// PublishFirst stores a message unless its subject has one, which is no error.
func (b *Broker) PublishFirst(ctx context.Context, m *nats.Msg) error {
	if m.Header == nil {
		m.Header = nats.Header{}
	}
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
	_, err := b.Publish(ctx, m)
	if isWrongRevision(err) {
		return nil
	}
	return err
}
