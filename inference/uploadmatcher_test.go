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

func TestUploadMatcher_MatchesWholeFilesOnly(t *testing.T) {
	engine := orttest.Open(t)
	file := modelFiles(t, 1)[0]
	m, err := models.Read(file, models.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	// The files have a common prefix, and one is a prefix of another.
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
			t.Error("Remembers is true before Remember")
		}
		without := c.Stats().Bytes
		d.Remember(data)
		release()
		if c.Stats().Bytes < without+int64(len(data)) || !d.Remembers() {
			t.Errorf("%s: %d bytes before, %d after, without the file's %d bytes", key, before, c.Stats().Bytes, len(data))
		}
	}
	r := rand.New(rand.NewPCG(7, 8))
	feed := func(data []byte) (m *UploadMatcher, rest []byte) {
		m = c.UploadMatcher()
		for len(data) > 0 {
			n := min(1+r.IntN(100_000), len(data))
			taken := m.Next(data[:n])
			data = data[taken:]
			if taken < n {
				return m, data
			}
		}
		return m, nil
	}
	for key, data := range known {
		for i := range 10 {
			// The file alone, and followed by other bytes.
			follows := []byte("\r\n--boundary")[:i%2*12]
			matcher, rest := feed(slices.Concat(data, follows))
			if sum, ok := matcher.Whole(); !ok || sum != key || !bytes.Equal(rest, follows) || !bytes.Equal(matcher.Seen(), data) {
				t.Errorf("%s matches %q (%v) with %q left", key, sum, ok, rest)
			}
		}
	}
	other := bytes.Clone(file)
	other[len(other)/2]++
	for name, data := range map[string][]byte{"nothing": {}, "a prefix": file[:len(file)-1], "too long": append(bytes.Clone(long), 'x'), "another": other} {
		matcher, rest := feed(data)
		if sum, ok := matcher.Whole(); ok && len(rest) == 0 {
			t.Errorf("%s matches %s", name, sum)
		}
		if !bytes.Equal(append(matcher.Seen(), rest...), data) {
			t.Errorf("%s: bytes are missing", name)
		}
	}
}
