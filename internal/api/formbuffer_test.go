package api

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

func TestReadExpecting_ReadsAllIntoLittleMoreThanExpected(t *testing.T) {
	const start = 64 << 10
	for _, size := range []int{0, 1, start - bytes.MinRead - 1, start - bytes.MinRead, start - bytes.MinRead + 1, start, 3*start + 7, 40 * start} {
		for _, expected := range []int64{0, int64(size), int64(size) + 300} {
			want := make([]byte, size)
			r := rand.NewChaCha8([32]byte{1})
			_, _ = r.Read(want)
			for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader, "end with data": iotest.DataErrReader} {
				got, err := readExpecting(bytes.NewBuffer(make([]byte, 0, start)), wrap(bytes.NewReader(want)), expected)
				if err != nil || !bytes.Equal(got.Bytes(), want) {
					t.Errorf("%s, %d bytes, %d expected: %d read, %v", name, size, expected, got.Len(), err)
				}
				if limit := max(start, int(expected)+bytes.MinRead); expected >= int64(size) && got.Cap() > limit {
					t.Errorf("%s, %d bytes, %d expected: a capacity of %d, more than %d", name, size, expected, got.Cap(), limit)
				}
				if got.Cap() > max(start, 4*size) {
					t.Errorf("%s, %d bytes, %d expected: a capacity of %d", name, size, expected, got.Cap())
				}
			}
		}
	}
}

func TestReadExpecting_AllocatesAtMostFourTimesWhatArrived(t *testing.T) {
	const start, sent = 64 << 10, 100 << 10
	r := io.MultiReader(bytes.NewReader(make([]byte, sent)), iotest.ErrReader(io.ErrUnexpectedEOF))
	got, err := readExpecting(bytes.NewBuffer(make([]byte, 0, start)), r, 1<<30)
	if !errors.Is(err, io.ErrUnexpectedEOF) || got.Len() != sent || got.Cap() > 4*start {
		t.Errorf("%d bytes, a capacity of %d, %v", got.Len(), got.Cap(), err)
	}
}
