package broker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
)

func TestRetryMissing_AsksAServerAgainThatIsBehind(t *testing.T) {
	missing, other := errors.New("missing"), errors.New("other")
	both(t, func(t *testing.T, b *broker.Broker) {
		for _, c := range []struct {
			name     string
			errs     []error // of the calls
			want     error
			embedded error // without a cluster, where the first call counts
		}{
			{"found", []error{nil}, nil, nil},
			{"found later", []error{missing, missing, nil}, nil, missing},
			{"another error", []error{missing, other}, other, missing},
		} {
			want, calls := c.want, len(c.errs)
			if b.Embedded() {
				want, calls = c.embedded, 1
			}
			n := 0
			err := b.RetryMissing(t.Context(), missing, func() error {
				n++
				return c.errs[n-1]
			})
			if !errors.Is(err, want) || n != calls {
				t.Errorf("%s: %v after %d calls, expected %v after %d", c.name, err, n, want, calls)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel)
		if err := b.RetryMissing(ctx, missing, func() error { return missing }); !errors.Is(err, missing) {
			t.Errorf("%v, expected %v", err, missing)
		}
	})
}

// A process may be told of a file before the server that it asks has it.
func TestOpenStored_WaitsForAFileThatIsStoredMeanwhile(t *testing.T) {
	b := brokertest.Open(t, brokertest.InProcess(t).URL(), nil)
	f, err := b.Files(t.Context(), "things")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Open(t.Context(), "late"); !errors.Is(err, broker.ErrNotFound) {
		t.Fatalf("%v, expected %v", err, broker.ErrNotFound)
	}
	stored := make(chan error, 1)
	time.AfterFunc(500*time.Millisecond, func() {
		_, _, err := f.Put(t.Context(), "late", strings.NewReader("content"))
		stored <- err
	})
	c, err := f.OpenStored(t.Context(), "late")
	if put := <-stored; put != nil || err != nil || c.Bytes != 7 {
		t.Errorf("%v, %v", put, err)
	}
}
