package jpeglossless

import (
	"math/bits"
	"slices"
	"testing"
)

// encoder writes a lossless JPEG of one component with predictor 1 and a restart after
// each row, if restarts is set.
type encoder struct {
	out  []byte
	acc  uint32
	left int // free bits in acc's low byte
}

func (e *encoder) bits(v, n int) {
	for i := n - 1; i >= 0; i-- {
		e.acc = e.acc<<1 | uint32(v>>i&1)
		if e.left--; e.left == 0 {
			e.out = append(e.out, byte(e.acc))
			if byte(e.acc) == 0xff {
				e.out = append(e.out, 0)
			}
			e.left = 8
		}
	}
}

// pad fills the last byte with ones.
func (e *encoder) pad() {
	for e.left != 8 {
		e.bits(1, 1)
	}
}

// encode uses codes of 5 bits for the 17 categories.
func encode(w, h int, values []int, restarts bool) []byte {
	e := &encoder{left: 8}
	e.out = append(e.out, 0xff, 0xd8, 0xff, 0xc3, 0, 11, 16, 0, byte(h), 0, byte(w), 1, 1, 0x11, 0)
	e.out = append(e.out, 0xff, 0xc4, 0, 19+17, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	for c := range 17 {
		e.out = append(e.out, byte(c))
	}
	if restarts {
		e.out = append(e.out, 0xff, 0xdd, 0, 4, 0, byte(w))
	}
	e.out = append(e.out, 0xff, 0xda, 0, 8, 1, 1, 0, 1, 0, 0)
	for y := range h {
		if restarts && y > 0 {
			e.pad()
			e.out = append(e.out, 0xff, 0xd0|byte((y-1)%8))
		}
		for x := range w {
			before := 1 << 15
			switch {
			case x > 0:
				before = values[y*w+x-1]
			case y > 0 && !restarts:
				before = values[(y-1)*w]
			}
			d := (values[y*w+x]-before+1<<15)&0xffff - 1<<15
			if d == -1<<15 {
				e.bits(16, 5)
				continue
			}
			c := bits.Len(uint(max(d, -d)))
			e.bits(c, 5)
			if d < 0 {
				d += 1<<c - 1
			}
			e.bits(d, c)
		}
	}
	e.pad()
	return append(e.out, 0xff, 0xd9)
}

func TestDecode_ReadsRestartsAndTheLargestDifference(t *testing.T) {
	const w, h = 9, 11
	values := make([]int, w*h)
	for i := range values {
		values[i] = i * i * 7919 & 0xffff
	}
	values[12], values[13], values[14] = 0, 1<<15, 0xffff
	for _, restarts := range []bool{false, true} {
		data := encode(w, h, values, restarts)
		_, samples, err := Decode(data, small)
		if err != nil {
			t.Fatal(restarts, err)
		}
		for i, v := range samples {
			if int(v) != values[i] {
				t.Fatalf("restarts %v: sample %d is %d, expected %d", restarts, i, v, values[i])
			}
		}
		if restarts {
			at := slices.Index(data, 0xdd)
			data[at+4]++ // not a whole number of rows
			if _, _, err := Decode(data, small); !codec.Expected(err) {
				t.Errorf("restarts within a row: %v", err)
			}
		}
	}
}
