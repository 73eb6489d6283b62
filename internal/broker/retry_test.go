package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestUnavailable_TellsWhatAnotherTryMayMend(t *testing.T) {
	api := func(code jetstream.ErrorCode, text string) error {
		return fmt.Errorf("nats: %w", &jetstream.APIError{Code: 503, ErrorCode: code, Description: text})
	}
	for name, test := range map[string]struct {
		err                  error
		unavailable, noSpace bool
	}{
		"no answer":                       {context.DeadlineExceeded, true, false},
		"no responders":                   {nats.ErrNoResponders, true, false},
		"no connection":                   {nats.ErrReconnectBufExceeded, true, false},
		"a name that is not known yet":    {&net.DNSError{Err: "no such host", IsNotFound: true}, true, false},
		"a message that is being stored":  {api(10158, "duplicate message id is in process"), true, false},
		"a leader that is not ready":      {api(10163, "expected last sequence per subject temporarily unavailable"), true, false},
		"a system that is not ready":      {api(10008, "JetStream system temporarily unavailable"), true, false},
		"another revision":                {api(10071, "wrong last sequence: 3"), false, false},
		"a subject with a message":        {api(10077, "maximum messages per subject exceeded"), false, false},
		"a full stream":                   {api(10077, "maximum bytes exceeded"), false, true},
		"a full server":                   {api(10047, "insufficient storage resources available"), false, true},
		"an account at its limit":         {api(10023, "insufficient resources"), false, true},
		"a stream that is closed":         {api(10077, "stream is closed"), true, false},
		"credentials that are not valid":  {nats.ErrAuthorization, false, false},
		"a connection that Close has cut": {nats.ErrConnectionClosed, false, false},
		"anything else":                   {errors.New("prose"), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := unavailable(test.err); got != test.unavailable {
				t.Errorf("unavailable: %t", got)
			}
			if got := IsNoSpace(test.err); got != test.noSpace {
				t.Errorf("no space: %t", got)
			}
		})
	}
}
