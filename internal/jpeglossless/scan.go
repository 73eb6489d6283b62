package jpeglossless

import (
	"fmt"
	"math/bits"
)

// tableSpec is a Huffman table as the file has it: the number of codes of each length and
// their categories. It is built when a scan uses it, so that many tables in a file cost no
// time.
type tableSpec struct {
	counts [16]byte
	values []byte
}

// table maps the next 16 bits to a code's category and length: category<<8 | length, or 0.
type table [1 << 16]uint16

// huffman reads the tables of a segment.
func (d *decoder) huffman(b []byte) error {
	for len(b) > 0 {
		if len(b) < 17 {
			return failures.Truncated()
		}
		id, n := b[0], 0
		for _, c := range b[1:17] {
			n += int(c)
		}
		if id > 3 {
			return fmt.Errorf("%w: Huffman table %#x, expected 0 to 3", ErrDamaged, id)
		}
		if n > 256 || len(b) < 17+n {
			return failures.Truncated()
		}
		d.tables[id] = tableSpec{[16]byte(b[1:17]), b[17 : 17+n]}
		b = b[17+n:]
	}
	return nil
}

// build returns the table for decoding.
func (s *tableSpec) build() (*table, error) {
	if len(s.values) == 0 {
		return nil, fmt.Errorf("%w: a Huffman table is missing", ErrDamaged)
	}
	t := new(table)
	code, next := 0, 0
	for length := 1; length <= 16; length++ {
		for range s.counts[length-1] {
			if code >= 1<<length {
				return nil, fmt.Errorf("%w: a Huffman table has too many codes", ErrDamaged)
			}
			if s.values[next] > 16 {
				return nil, fmt.Errorf("%w: a Huffman table has the category %d, expected 0 to 16", ErrDamaged, s.values[next])
			}
			entry := uint16(s.values[next])<<8 | uint16(length)
			at := code << (16 - length)
			for i := range 1 << (16 - length) {
				t[at+i] = entry
			}
			code++
			next++
		}
		code <<= 1
	}
	return t, nil
}

// scan is the state of decoding one scan.
type scan struct {
	w, h, stride     int
	samples          []uint16
	components       []int
	tables           []*table
	predictor, shift int
	first            int // the prediction of the first sample
	restart          int // rows between restarts, or 0
}

// decode decodes the samples and returns the rest of the file.
func (s *scan) decode(data []byte) ([]byte, error) {
	r := reader{data: data}
	top := 0 // the first row since the last restart
	for y := range s.h {
		if s.restart > 0 && y > 0 && y%s.restart == 0 {
			if err := r.restart(); err != nil {
				return nil, err
			}
			top = y
		}
		row := s.samples[y*s.w*s.stride : (y+1)*s.w*s.stride]
		var above []uint16
		if y > top {
			above = s.samples[(y-1)*s.w*s.stride : y*s.w*s.stride]
		}
		if err := s.row(&r, row, above); err != nil {
			return nil, fmt.Errorf("%w in row %d of %d", err, y, s.h)
		}
	}
	return r.rest(), nil
}

// row decodes a row; above is nil for the first one.
func (s *scan) row(r *reader, row, above []uint16) error {
	for x := range s.w {
		for i, c := range s.components {
			at := x*s.stride + c
			diff, err := r.difference(s.tables[i])
			if err != nil {
				return err
			}
			var p int
			switch {
			case x == 0 && above == nil:
				p = s.first
			case above == nil:
				p = int(row[at-s.stride] >> s.shift)
			case x == 0:
				p = int(above[at] >> s.shift)
			default:
				p = s.predict(int(row[at-s.stride]>>s.shift), int(above[at]>>s.shift), int(above[at-s.stride]>>s.shift))
			}
			row[at] = uint16(p+diff) << s.shift
		}
	}
	return nil
}

// predict is the predictor of T.81, table H.1, of the samples on the left (a), above (b)
// and above on the left (c).
func (s *scan) predict(a, b, c int) int {
	switch s.predictor {
	case 1:
		return a
	case 2:
		return b
	case 3:
		return c
	case 4:
		return a + b - c
	case 5:
		return a + (b-c)>>1
	case 6:
		return b + (a-c)>>1
	}
	return (a + b) >> 1
}

// reader reads the bits of a scan. It stops at a marker.
type reader struct {
	data []byte
	acc  uint64
	n    int // bits in acc
}

// fill adds whole bytes to acc until it has at least 32 bits or the scan ends.
func (r *reader) fill() {
	for r.n <= 48 && len(r.data) > 0 {
		b := r.data[0]
		if b == 0xff {
			if len(r.data) < 2 || r.data[1] != 0 {
				return
			}
			r.data = r.data[1:]
		}
		r.data = r.data[1:]
		r.acc = r.acc<<8 | uint64(b)
		r.n += 8
	}
}

// difference decodes the difference of a sample and its prediction.
func (r *reader) difference(t *table) (int, error) {
	if r.n < 32 {
		r.fill()
	}
	var peek uint16
	if r.n >= 16 {
		peek = uint16(r.acc >> (r.n - 16))
	} else {
		peek = uint16(r.acc << (16 - r.n))
	}
	entry := t[peek]
	length, category := int(entry&0xff), int(entry>>8)
	if entry == 0 {
		return 0, fmt.Errorf("%w: an unknown code", ErrDamaged)
	}
	extra := category
	if category == 16 {
		extra = 0
	}
	if length+extra > r.n {
		return 0, failures.Truncated()
	}
	r.n -= length
	switch category {
	case 0:
		return 0, nil
	case 16:
		return 32768, nil
	}
	r.n -= extra
	v := int(r.acc >> r.n & (1<<extra - 1))
	if bits.Len(uint(v)) < extra { // the first bit is 0: a negative number
		v -= 1<<extra - 1
	}
	return v, nil
}

// restart skips the padding and the marker of a restart.
func (r *reader) restart() error {
	r.data = r.rest()
	if len(r.data) < 2 || r.data[0] != 0xff || r.data[1]&^7 != rst0 {
		return fmt.Errorf("%w: a restart is missing", ErrDamaged)
	}
	r.data, r.acc, r.n = r.data[2:], 0, 0
	return nil
}

// rest returns the file from the next marker on. Bytes before it are padding.
func (r *reader) rest() []byte {
	d := r.data
	for len(d) >= 2 && (d[0] != 0xff || d[1] == 0 || d[1] == 0xff) {
		d = d[1:]
	}
	return d
}
