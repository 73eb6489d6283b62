package bulk

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"runtime"
	"testing"
)

// heap returns the bytes of the heap that are in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// The images cannot be read, so that only the path of images and results takes time.
func TestResults_StreamInBoundedMemory(t *testing.T) {
	const images = 20_000
	d := detector(t)
	var entries []entryOf
	for i := range images {
		entries = append(entries, entryOf{fmt.Sprintf("a folder with a long name/image %05d.png", i), bytes.Repeat([]byte{'x'}, 300)})
	}
	join := cluster(t)
	var states jobStates
	p := start(t, join(), d, &states)
	p.works(t)
	job := jobOf(t, "job", d, zipOf(t, entries...))
	entries = nil
	before := heap()
	r, err := p.Run(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	lines, size := bufio.NewScanner(r.Reader(t.Context())), 0
	n := 0
	for ; lines.Scan(); n++ {
		size += len(lines.Bytes())
		if want := fmt.Sprintf(`{"file":"a folder with a long name/image %05d.png",`, n); !bytes.HasPrefix(lines.Bytes(), []byte(want)) {
			t.Fatalf("line %d is %s", n, lines.Bytes())
		}
		if n == images/2 {
			if after := heap(); after > before+4<<20 {
				t.Errorf("%d bytes of memory with half of the lines read", after-before)
			}
		}
	}
	if n != images || lines.Err() != nil || r.Counts.Unreadable != images {
		t.Errorf("%d lines of %d bytes, %v, counts %+v", n, size, lines.Err(), r.Counts)
	}
	if _, err := io.Copy(io.Discard, r.Reader(t.Context())); err != nil { // it may be read again
		t.Error(err)
	}
}
