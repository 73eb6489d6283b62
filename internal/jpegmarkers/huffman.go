package jpegmarkers

import (
	"fmt"
	"math/bits"
)

// Huffman is a Huffman table as the file has it: the number of codes of each length and
// their values. It is built when a scan uses it, so that many tables in a file cost no time.
type Huffman struct {
	counts [16]byte
	values []byte
}

// HuffmanTable maps the next 16 bits to a code's value and length: value<<8 | length, or 0.
type HuffmanTable [1 << 16]uint16

// ReadHuffman reads the tables of a DHT segment. It calls set with the class and identifier
// of each.
func ReadHuffman(b []byte, e Errors, set func(id byte, t Huffman) error) error {
	for len(b) > 0 {
		if len(b) < 17 {
			return e.Truncated()
		}
		n := 0
		for _, c := range b[1:17] {
			n += int(c)
		}
		if n > 256 || len(b) < 17+n {
			return e.Truncated()
		}
		if err := set(b[0], Huffman{[16]byte(b[1:17]), b[17 : 17+n]}); err != nil {
			return err
		}
		b = b[17+n:]
	}
	return nil
}

// Build returns the table for decoding. Its values are at most highest.
func (h *Huffman) Build(e Errors, highest byte) (*HuffmanTable, error) {
	if len(h.values) == 0 {
		return nil, fmt.Errorf("%w: a Huffman table is missing", e.Damaged)
	}
	t := new(HuffmanTable)
	code, next := 0, 0
	for length := 1; length <= 16; length++ {
		for range h.counts[length-1] {
			if code >= 1<<length {
				return nil, fmt.Errorf("%w: a Huffman table has too many codes", e.Damaged)
			}
			if h.values[next] > highest {
				return nil, fmt.Errorf("%w: a Huffman table has the value %d, expected 0 to %d", e.Damaged, h.values[next], highest)
			}
			entry := uint16(h.values[next])<<8 | uint16(length)
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

// BitReader reads the bits of a scan. It stops at a marker.
type BitReader struct {
	data []byte
	acc  uint64
	n    int // bits in acc
	Errors
}

// NewBitReader returns a reader of a scan, which begins with data.
func NewBitReader(data []byte, e Errors) BitReader { return BitReader{data: data, Errors: e} }

// fill adds whole bytes to acc until it has more than 48 bits or the scan ends.
func (r *BitReader) fill() {
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

// Symbol returns the value of the next code.
func (r *BitReader) Symbol(t *HuffmanTable) (int, error) {
	if r.n < 32 { // enough for a code and Signed
		r.fill()
	}
	var peek uint16
	if r.n >= 16 {
		peek = uint16(r.acc >> (r.n - 16))
	} else {
		peek = uint16(r.acc << (16 - r.n))
	}
	entry := t[peek]
	if entry == 0 {
		return 0, fmt.Errorf("%w: an unknown code", r.Damaged)
	}
	length := int(entry & 0xff)
	if length > r.n {
		return 0, r.Truncated()
	}
	r.n -= length
	return int(entry >> 8), nil
}

// Signed returns the number in the next count bits after a code, at most 16: it is negative
// if the first bit is 0 (T.81, F.2.2.1).
func (r *BitReader) Signed(count int) (int, error) {
	if count > r.n {
		return 0, r.Truncated()
	}
	r.n -= count
	v := int(r.acc >> r.n & (1<<count - 1))
	if bits.Len(uint(v)) < count {
		v -= 1<<count - 1
	}
	return v, nil
}

// Restart skips the padding and the marker of a restart.
func (r *BitReader) Restart() error {
	const rst0 = 0xd0
	r.data = r.Rest()
	if len(r.data) < 2 || r.data[0] != 0xff || r.data[1]&^7 != rst0 {
		return fmt.Errorf("%w: a restart is missing", r.Damaged)
	}
	r.data, r.acc, r.n = r.data[2:], 0, 0
	return nil
}

// Rest returns the file from the next marker on. Bytes before it are padding.
func (r *BitReader) Rest() []byte {
	d := r.data
	for len(d) >= 2 && (d[0] != 0xff || d[1] == 0 || d[1] == 0xff) {
		d = d[1:]
	}
	return d
}
