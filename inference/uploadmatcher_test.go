package inference

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

func TestFilesAreRecognizedByAllOfTheirBytes(t *testing.T) {
	engine := orttest.Open(t)
	file := modelFiles(t, 1)[0]
	m, err := models.Read(file, models.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	// Files that begin alike, one the beginning of another.
	long := append(bytes.Clone(file), "and more"...)
	changed := bytes.Clone(file)
	changed[len(changed)-1]++
	known := map[string][]byte{"plain": file, "long": long, "changed": changed}
	c := NewCache(1 << 30)
	defer c.Close()
	for key, data := range known {
		before := c.Stats().Bytes
		d, release, err := c.Get(context.Background(), key, func() (*Detector, error) { return NewDetector(engine, m, 1) })
		if err != nil {
			t.Fatal(err)
		}
		if d.Remembers() {
			t.Error("a file is remembered that nobody gave")
		}
		without := c.Stats().Bytes
		d.Remember(data)
		release()
		if c.Stats().Bytes < without+int64(len(data)) || !d.Remembers() {
			t.Errorf("%s: %d bytes before, %d after, the file of %d bytes is not counted", key, before, c.Stats().Bytes, len(data))
		}
	}
	r := rand.New(rand.NewPCG(7, 8))
	feed := func(data []byte) (rec *UploadMatcher, rest []byte) {
		rec = c.UploadMatcher()
		for len(data) > 0 {
			n := min(1+r.IntN(100_000), len(data))
			taken := rec.Next(data[:n])
			data = data[taken:]
			if taken < n {
				return rec, data
			}
		}
		return rec, nil
	}
	for key, data := range known {
		for i := range 10 {
			// As it comes, and as the beginning of what goes on with something else.
			follows := []byte("\r\n--boundary")[:i%2*12]
			rec, rest := feed(slices.Concat(data, follows))
			if sum, ok := rec.Whole(); !ok || sum != key || !bytes.Equal(rest, follows) || !bytes.Equal(rec.Seen(), data) {
				t.Errorf("%s is taken for %q (%v) with %q left", key, sum, ok, rest)
			}
		}
	}
	other := bytes.Clone(file)
	other[len(other)/2]++
	for name, data := range map[string][]byte{"nothing": {}, "a beginning": file[:len(file)-1], "too long": append(bytes.Clone(long), 'x'), "another": other} {
		rec, rest := feed(data)
		if sum, ok := rec.Whole(); ok && len(rest) == 0 {
			t.Errorf("%s is taken for %s", name, sum)
		}
		if !bytes.Equal(append(rec.Seen(), rest...), data) {
			t.Errorf("%s: its bytes are lost", name)
		}
	}
}
