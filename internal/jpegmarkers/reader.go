package jpegmarkers

import (
	"encoding/binary"
	"fmt"
)

// Markers that JPEG processes share.
const (
	SOI = 0xd8
	EOI = 0xd9
	DHT = 0xc4
	SOS = 0xda
	DRI = 0xdd
)

// MaxComponents is the maximum number of components of a frame that is read.
const MaxComponents = 4

// Header is the size and the depth in a frame header.
type Header struct {
	W, H, Components int
	// Bits is the number of bits of a sample, 2 to 16.
	Bits int
}

// Samples returns the number of samples of all components.
func (h Header) Samples() int { return h.W * h.H * h.Components }

// Errors are the errors of a process, which a Reader wraps.
type Errors struct {
	Damaged, Unsupported error
}

// Truncated returns the error for a file that ends too early.
func (e Errors) Truncated() error { return fmt.Errorf("%w: it is truncated", e.Damaged) }

// Reader reads the segments of a JPEG one after another.
type Reader struct {
	// Data is the rest of the file.
	Data []byte
	Errors
}

// NewReader returns a Reader of a file, behind the marker SOI with which it must begin.
func NewReader(data []byte, e Errors) (Reader, error) {
	if len(data) < 2 || data[0] != 0xff || data[1] != SOI {
		return Reader{}, fmt.Errorf("%w: it does not begin with the marker of a JPEG", e.Damaged)
	}
	return Reader{data[2:], e}, nil
}

// Next returns the next marker and the content of its segment, which is nil for EOI.
func (r *Reader) Next() (marker byte, body []byte, err error) {
	for len(r.Data) >= 2 && r.Data[0] == 0xff && r.Data[1] == 0xff {
		r.Data = r.Data[1:] // fill bytes
	}
	if len(r.Data) < 2 {
		return 0, nil, r.Truncated()
	}
	// Entropy-coded data has 0xff00 for a sample's 0xff, and in JPEG-LS any byte below
	// 0x80 behind it; no marker has either.
	if r.Data[0] != 0xff || r.Data[1] < 0x80 {
		return 0, nil, fmt.Errorf("%w: a marker is missing", r.Damaged)
	}
	marker = r.Data[1]
	r.Data = r.Data[2:]
	if marker == EOI {
		return marker, nil, nil
	}
	if len(r.Data) < 2 {
		return 0, nil, r.Truncated()
	}
	n := int(binary.BigEndian.Uint16(r.Data))
	if n < 2 || n > len(r.Data) {
		return 0, nil, r.Truncated()
	}
	body, r.Data = r.Data[2:n], r.Data[n:]
	return marker, body, nil
}

// Frame is a frame header with the components that scans refer to.
type Frame struct {
	Header
	ids     [MaxComponents]byte
	decoded [MaxComponents]bool
}

// ReadFrame reads the content of a frame header's segment.
func ReadFrame(b []byte, e Errors) (*Frame, error) {
	if len(b) < 6 {
		return nil, e.Truncated()
	}
	h := Header{Bits: int(b[0]), H: int(binary.BigEndian.Uint16(b[1:])), W: int(binary.BigEndian.Uint16(b[3:])), Components: int(b[5])}
	switch {
	case h.Bits < 2 || h.Bits > 16:
		return nil, fmt.Errorf("%w: %d bits per sample, expected 2 to 16", e.Damaged, h.Bits)
	case h.W < 1 || h.H < 1:
		// A height of 0 means that a DNL segment has it.
		return nil, fmt.Errorf("%w: %d×%d pixels", e.Unsupported, h.W, h.H)
	case h.Components < 1 || h.Components > MaxComponents:
		return nil, fmt.Errorf("%w: %d components, expected 1 to %d", e.Unsupported, h.Components, MaxComponents)
	case len(b) < 6+3*h.Components:
		return nil, e.Truncated()
	}
	f := &Frame{Header: h}
	for i := range h.Components {
		f.ids[i] = b[6+3*i]
		if b[7+3*i] != 0x11 && h.Components > 1 {
			return nil, fmt.Errorf("%w: its components have different sizes", e.Unsupported)
		}
	}
	return f, nil
}

// Decode marks the component with an id as decoded, and returns its index.
func (f *Frame) Decode(id byte, e Errors) (int, error) {
	for c := range f.Components {
		if f.ids[c] == id && !f.decoded[c] {
			f.decoded[c] = true
			return c, nil
		}
	}
	return 0, fmt.Errorf("%w: a scan of an unknown component, or of one that was decoded before", e.Damaged)
}

// Complete reports whether all components are decoded.
func (f *Frame) Complete() bool {
	for c := range f.Components {
		if !f.decoded[c] {
			return false
		}
	}
	return true
}
