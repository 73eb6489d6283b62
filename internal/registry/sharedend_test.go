package registry

import (
	"strconv"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
)

// A node may read a record, and hear of its deletion before it has taken the record over.
func TestShared_DoesNotBringADeletedModelBack(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	a, b := openShared(t, url, nil), openShared(t, url, nil)
	if _, err := putOf(t, a, 1, Change{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the model is there", func() bool { return len(b.List()) == 1 })
	read, err := b.b.Get(t.Context(), b.kv, "m")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Delete(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	until(t, "the model is gone", func() bool { return len(b.List()) == 0 })
	b.learn("m", read.Value(), read.Revision())
	if list := b.List(); len(list) != 0 {
		t.Errorf("the deleted model is there again: %+v", list)
	}
	again, err := putOf(t, a, 2, Change{})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "a new model of the name is there", func() bool { return currentOf(t, b) == again })
	for i := range maxRemoved + 10 { // the deleted names do not grow without limit
		b.forget("n"+strconv.Itoa(i), 1)
	}
	if n := len(b.known); n > maxRemoved+1 {
		t.Errorf("%d names are kept", n)
	}
	if currentOf(t, b) != again {
		t.Error("the model is forgotten with the deleted names")
	}
}

func TestShared_EndsAlthoughItsServersAreAway(t *testing.T) {
	s := brokertest.InProcess(t)
	r := openShared(t, s.URL(), nil)
	s.Stop()
	r.remove("a", "b", "c", "d", "e", "f")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Close()
	}()
	select {
	case <-ended:
	case <-time.After(40 * time.Second): // two of the six would take as long
		t.Error("Close waits for each file")
	}
}
