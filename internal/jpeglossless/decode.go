package jpeglossless

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Errors of Decode.
var (
	// ErrDamaged is returned, wrapped, for bytes that are not a lossless JPEG.
	ErrDamaged = errors.New("damaged lossless JPEG")
	// ErrUnsupported is returned, wrapped, for a JPEG of another process.
	ErrUnsupported = errors.New("unsupported lossless JPEG")
)

// Header is the size and the depth in the frame header.
type Header struct {
	W, H, Components int
	// Bits is the number of bits of a sample, 2 to 16.
	Bits int
}

// Markers of a JPEG.
const (
	soi, eoi, sof3, dht, sos, dri = 0xd8, 0xd9, 0xc3, 0xc4, 0xda, 0xdd
	rst0                          = 0xd0
	maxComponents                 = 4
)

type decoder struct {
	data     []byte // the rest of the file
	header   Header
	ids      [maxComponents]byte
	tables   [4]tableSpec
	interval int // samples of each component between restarts, or 0
	samples  []uint16
	decoded  [maxComponents]bool
}

// Decode decodes a lossless JPEG. It calls check with the header before it allocates
// memory for the samples, and returns check's error. The samples of a pixel are adjacent.
// The errors are ErrDamaged and ErrUnsupported, wrapped.
func Decode(data []byte, check func(Header) error) (Header, []uint16, error) {
	d := &decoder{data: data}
	if len(data) < 2 || data[0] != 0xff || data[1] != soi {
		return d.header, nil, fmt.Errorf("%w: it does not begin with the marker of a JPEG", ErrDamaged)
	}
	d.data = data[2:]
	for {
		marker, body, err := d.segment()
		if err != nil {
			return d.header, nil, err
		}
		switch {
		case marker == eoi:
			return d.header, nil, fmt.Errorf("%w: it ends before all components are decoded", ErrDamaged)
		case marker == sof3:
			if err = d.frame(body); err == nil {
				err = check(d.header)
			}
			if err == nil {
				d.samples = make([]uint16, d.header.W*d.header.H*d.header.Components)
			}
		case marker == dht:
			err = d.huffman(body)
		case marker == dri:
			if len(body) < 2 {
				return d.header, nil, errTruncated
			}
			d.interval = int(binary.BigEndian.Uint16(body))
		case marker == sos:
			if err = d.scan(body); err == nil && d.complete() {
				return d.header, d.samples, nil
			}
		case 0xc0 <= marker && marker <= 0xcf && marker != 0xc8 && marker != 0xcc:
			err = fmt.Errorf("%w: it is a JPEG of another process (SOF%d)", ErrUnsupported, marker-0xc0)
		}
		if err != nil {
			return d.header, nil, err
		}
	}
}

var errTruncated = fmt.Errorf("%w: it is truncated", ErrDamaged)

// segment returns the next marker and the content of its segment.
func (d *decoder) segment() (marker byte, body []byte, err error) {
	for len(d.data) >= 2 && d.data[0] == 0xff && d.data[1] == 0xff {
		d.data = d.data[1:] // fill bytes
	}
	if len(d.data) < 2 {
		return 0, nil, errTruncated
	}
	if d.data[0] != 0xff || d.data[1] == 0 {
		return 0, nil, fmt.Errorf("%w: a marker is missing", ErrDamaged)
	}
	marker = d.data[1]
	d.data = d.data[2:]
	if marker == eoi {
		return marker, nil, nil
	}
	if len(d.data) < 2 {
		return 0, nil, errTruncated
	}
	n := int(binary.BigEndian.Uint16(d.data))
	if n < 2 || n > len(d.data) {
		return 0, nil, errTruncated
	}
	body, d.data = d.data[2:n], d.data[n:]
	return marker, body, nil
}

// frame reads the frame header.
func (d *decoder) frame(b []byte) error {
	if d.samples != nil {
		return fmt.Errorf("%w: it has two frame headers", ErrDamaged)
	}
	if len(b) < 6 {
		return errTruncated
	}
	h := Header{Bits: int(b[0]), H: int(binary.BigEndian.Uint16(b[1:])), W: int(binary.BigEndian.Uint16(b[3:])), Components: int(b[5])}
	d.header = h
	switch {
	case h.Bits < 2 || h.Bits > 16:
		return fmt.Errorf("%w: %d bits per sample, expected 2 to 16", ErrDamaged, h.Bits)
	case h.W < 1 || h.H < 1:
		return fmt.Errorf("%w: %d×%d pixels", ErrDamaged, h.W, h.H)
	case h.Components < 1 || h.Components > maxComponents:
		return fmt.Errorf("%w: %d components, expected 1 to %d", ErrUnsupported, h.Components, maxComponents)
	case len(b) < 6+3*h.Components:
		return errTruncated
	}
	for i := range h.Components {
		d.ids[i] = b[6+3*i]
		if sampling := b[7+3*i]; sampling != 0x11 && h.Components > 1 {
			return fmt.Errorf("%w: its components have different sizes", ErrUnsupported)
		}
	}
	return nil
}

// complete reports whether all components are decoded.
func (d *decoder) complete() bool {
	for i := range d.header.Components {
		if !d.decoded[i] {
			return false
		}
	}
	return true
}

// scan decodes one scan.
func (d *decoder) scan(b []byte) error {
	if d.samples == nil {
		return fmt.Errorf("%w: it has no frame header", ErrDamaged)
	}
	if len(b) < 1 || len(b) < 4+2*int(b[0]) {
		return errTruncated
	}
	n := int(b[0])
	if n < 1 || n > d.header.Components {
		return fmt.Errorf("%w: a scan of %d components", ErrDamaged, n)
	}
	s := scan{w: d.header.W, h: d.header.H, stride: d.header.Components, samples: d.samples}
	for i := range n {
		id, selector := b[1+2*i], b[2+2*i]>>4
		at := -1
		for c := range d.header.Components {
			if d.ids[c] == id && !d.decoded[c] && at < 0 {
				at = c
			}
		}
		if at < 0 {
			return fmt.Errorf("%w: a scan of an unknown component, or of one that was decoded before", ErrDamaged)
		}
		if selector > 3 {
			return fmt.Errorf("%w: Huffman table %d, expected 0 to 3", ErrDamaged, selector)
		}
		t, err := d.tables[selector].build()
		if err != nil {
			return err
		}
		d.decoded[at] = true
		s.components = append(s.components, at)
		s.tables = append(s.tables, t)
	}
	rest := b[1+2*n:]
	s.predictor, s.shift = int(rest[0]), int(rest[2]&15)
	if s.predictor < 1 || s.predictor > 7 || s.shift >= d.header.Bits {
		return fmt.Errorf("%w: predictor %d with point transform %d", ErrDamaged, s.predictor, s.shift)
	}
	if s.first = 1 << (d.header.Bits - s.shift - 1); d.interval > 0 {
		if d.interval%s.w != 0 {
			return fmt.Errorf("%w: restarts within a row", ErrUnsupported)
		}
		s.restart = d.interval / s.w
	}
	var err error
	d.data, err = s.decode(d.data)
	return err
}
