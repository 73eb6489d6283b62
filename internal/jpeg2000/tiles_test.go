package jpeg2000

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
	"time"
)

// tinyTiles is a codestream of side×side tiles of one pixel, each with 33 resolutions of
// three components and empty packets.
func tinyTiles(side uint32) []byte {
	be := binary.BigEndian
	b := []byte{0xff, 0x4f, 0xff, 0x51, 0, 47, 0, 0}
	for _, v := range []uint32{side, side, 0, 0, 1, 1, 0, 0} {
		b = be.AppendUint32(b, v)
	}
	b = append(b, 0, 3, 7, 1, 1, 7, 1, 1, 7, 1, 1)
	b = append(b, 0xff, 0x52, 0, 12, 0, 0, 0, 1, 0, 32, 4, 4, 0, 1)
	b = append(b, 0xff, 0x5c, 0, 3+97, 0x40)
	b = append(b, bytes.Repeat([]byte{0x48}, 97)...)
	for i := range side * side {
		b = append(b, 0xff, 0x90, 0, 10)
		b = be.AppendUint16(b, uint16(i))
		b = be.AppendUint32(b, 14+99)
		b = append(b, 0, 1, 0xff, 0x93)
		b = append(b, make([]byte, 99)...)
	}
	return append(b, 0xff, 0xd9)
}

func TestDecode_ReadsTinyTilesInBoundedMemoryAndTime(t *testing.T) {
	const side = 64
	data := tinyTiles(side)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	_, samples, err := Decode(data, func(Header) error { return nil })
	runtime.ReadMemStats(&after)
	if err != nil || len(samples) != side*side*3 {
		t.Fatalf("%d samples, %v", len(samples), err)
	}
	for _, v := range samples {
		if v != 128 {
			t.Fatalf("a sample of an empty tile is %d, expected 128", v)
		}
	}
	// The memory of a tile is free after it.
	if got := (after.TotalAlloc - before.TotalAlloc) / (side * side); got > 100<<10 {
		t.Errorf("%d bytes for a tile", got)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if _, _, err := Decode(tinyTiles(side+1), func(Header) error { return nil }); !errors.Is(err, ErrUnsupported) {
		t.Errorf("%d tiles of one pixel: %v", (side+1)*(side+1), err)
	}
}
