package broker

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The server has one code for a stream with one replica and another for several; make
// model-faults tests them with servers.
func TestIsWrongRevision_KnowsBothCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&jetstream.APIError{Code: 400, ErrorCode: 10071}, true},
		{&jetstream.APIError{Code: 400, ErrorCode: 10164}, true},
		{fmt.Errorf("put: %w", &jetstream.APIError{Code: 400, ErrorCode: 10164}), true},
		{jetstream.ErrKeyExists, true},
		{jetstream.ErrKeyRevisionMismatch, true},
		{jetstream.ErrKeyNotFound, false},
		{&jetstream.APIError{Code: 503, ErrorCode: 10008}, false},
		{nats.ErrTimeout, false},
		{errors.New("other"), false},
		{nil, false},
	} {
		if got := isWrongRevision(c.err); got != c.want {
			t.Errorf("%v: %t", c.err, got)
		}
	}
}
