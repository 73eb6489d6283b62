package jobs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func (failing) Read([]byte) (int, error) { return 0, errors.New("no more") }

// A file is never in memory as a whole.
func TestFiles_AreStreamed(t *testing.T) {
	if testing.Short() {
		t.Skip("stores 192 MB")
	}
	q, _ := open(t, options(t.TempDir()))
	const size = 192 << 20
	var peak uint64
	watch := func() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapInuse)
	}
	runtime.GC()
	watch()
	before := peak
	n, sum, err := q.files.put(t.Context(), "x/large", io.LimitReader(watched{watch}, size))
	if err != nil || n != size {
		t.Fatal(n, err)
	}
	c, err := q.files.open(t.Context(), "x/large")
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.New()
	if n, err := io.CopyBuffer(struct{ io.Writer }{digest}, c, make([]byte, 1<<20)); err != nil || n != size {
		t.Fatal(n, err)
	}
	watch()
	if got := hex.EncodeToString(digest.Sum(nil)); got != sum {
		t.Errorf("%s, expected %s", got, sum)
	}
	if grown := peak - before; grown > size/2 {
		t.Errorf("the heap has grown by %d bytes for a file of %d", grown, size)
	}
}

type watched struct{ watch func() }

func (w watched) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i)
	}
	w.watch()
	return len(p), nil
}

func TestContent_FindsDamage(t *testing.T) {
	q, _ := open(t, options(t.TempDir()))
	if _, _, err := q.files.put(t.Context(), "x/y", strings.NewReader("abc")); err != nil {
		t.Fatal(err)
	}
	info, err := q.files.info(t.Context(), metaSubject("x/y"))
	if err != nil {
		t.Fatal(err)
	}
	if err := q.files.purge(t.Context(), chunkPrefix+info.NUID); err != nil {
		t.Fatal(err)
	}
	if err := q.files.publish(t.Context(), message(chunkPrefix+info.NUID, "abd")); err != nil {
		t.Fatal(err)
	}
	c, err := q.files.open(t.Context(), "x/y")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); !errors.Is(err, errDamaged) {
		t.Error(err)
	}
	// The format is JetStream's own.
	if err := q.files.remove(t.Context(), "x/y"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := q.files.put(t.Context(), "x/y", strings.NewReader("abc")); err != nil {
		t.Fatal(err)
	}
	store, err := q.js.ObjectStore(t.Context(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := store.GetBytes(t.Context(), "x/y"); err != nil || string(data) != "abc" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := q.files.open(t.Context(), "x/z"); !errors.Is(err, jetstream.ErrMsgNotFound) {
		t.Error(err)
	}
}

func message(subject, data string) *nats.Msg { return &nats.Msg{Subject: subject, Data: []byte(data)} }
