package broker

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
)

// openFiles returns a store in a folder.
func openFiles(t *testing.T) *Files {
	t.Helper()
	b, err := Open(t.Context(), Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	f, err := b.Files(t.Context(), "things")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A file is never in memory as a whole.
func TestFiles_AreStreamed(t *testing.T) {
	if testing.Short() {
		t.Skip("stores 192 MB")
	}
	f := openFiles(t)
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
	n, sum, err := f.Put(t.Context(), "x/large", io.LimitReader(watched{watch}, size))
	if err != nil || n != size {
		t.Fatal(n, err)
	}
	c, err := f.Open(t.Context(), "x/large")
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
	f := openFiles(t)
	if _, _, err := f.Put(t.Context(), "x/y", strings.NewReader("abc")); err != nil {
		t.Fatal(err)
	}
	info, err := f.info(t.Context(), f.metaSubject("x/y"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.purge(t.Context(), f.chunkSubject(info.NUID)); err != nil {
		t.Fatal(err)
	}
	if err := f.publish(t.Context(), f.chunkSubject(info.NUID), []byte("abd"), "other"); err != nil {
		t.Fatal(err)
	}
	c, err := f.Open(t.Context(), "x/y")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	// The format is JetStream's own.
	if err := f.Remove(t.Context(), "x/y"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Put(t.Context(), "x/y", strings.NewReader("abc")); err != nil {
		t.Fatal(err)
	}
	store, err := f.b.JetStream.ObjectStore(t.Context(), f.bucket)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := store.GetBytes(t.Context(), "x/y"); err != nil || string(data) != "abc" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := f.Open(t.Context(), "x/z"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}
