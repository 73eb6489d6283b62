package broker

import (
	"errors"
	"strings"
	"testing"
)

func TestOpen_RejectsAnUnusableURLWithoutItsPassword(t *testing.T) {
	for _, url := range []string{
		"nats://user:secret@127.0.0.1:port",
		"nats://user:secret%zz@127.0.0.1:4222",
		"nats://127.0.0.1:4222,nats://user:secret/#@127.0.0.1:4222",
		"nats://user:secret@",
	} {
		b, err := Open(t.Context(), Options{URL: url})
		if err == nil {
			b.Close()
		}
		if !errors.Is(err, ErrURL) || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	}
	for _, list := range []string{"127.0.0.1:4222", "nats", "nats://a:b%40c@nats:4222, tls://[::1]:4222", "wss://nats.example.org"} {
		if !usableURL(list) {
			t.Errorf("%s is rejected", list)
		}
	}
}
