package jpeglossless

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/deepmed/anomaly/internal/jpegmarkers"
)

// Errors of Decode.
var (
	// ErrDamaged is returned, wrapped, for bytes that are not a lossless JPEG.
	ErrDamaged = errors.New("damaged lossless JPEG")
	// ErrUnsupported is returned, wrapped, for a JPEG of another process.
	ErrUnsupported = errors.New("unsupported lossless JPEG")
)

var failures = jpegmarkers.Errors{Damaged: ErrDamaged, Unsupported: ErrUnsupported}

// Header is the size and the depth in the frame header.
type Header = jpegmarkers.Header

// sof3 is the marker of a frame of lossless JPEG.
const sof3 = 0xc3

type decoder struct {
	jpegmarkers.Reader
	frame    *jpegmarkers.Frame // nil before the frame header
	tables   [4]jpegmarkers.Huffman
	interval int // samples of each component between restarts, or 0
	samples  []uint16
}

// Decode decodes a lossless JPEG. It calls check with the header before it allocates
// memory for the samples, and returns check's error. The samples of a pixel are adjacent.
// The errors are ErrDamaged and ErrUnsupported, wrapped.
func Decode(data []byte, check func(Header) error) (Header, []uint16, error) {
	r, err := jpegmarkers.NewReader(data, failures)
	if err != nil {
		return Header{}, nil, err
	}
	d := &decoder{Reader: r}
	h, err := d.decode(check)
	if err != nil {
		return h, nil, err
	}
	return h, d.samples, nil
}

// decode reads segments until all components are decoded.
func (d *decoder) decode(check func(Header) error) (h Header, err error) {
	for {
		marker, body, err := d.Next()
		if err != nil {
			return h, err
		}
		switch {
		case marker == jpegmarkers.EOI:
			return h, fmt.Errorf("%w: it ends before all components are decoded", ErrDamaged)
		case marker == sof3:
			if d.frame != nil {
				return h, fmt.Errorf("%w: it has two frame headers", ErrDamaged)
			}
			if d.frame, err = jpegmarkers.ReadFrame(body, failures); err != nil {
				return h, err
			}
			h = d.frame.Header
			if err = check(h); err == nil {
				d.samples = make([]uint16, h.Samples())
			}
		case marker == jpegmarkers.DHT:
			err = jpegmarkers.ReadHuffman(body, failures, func(id byte, t jpegmarkers.Huffman) error {
				if int(id) >= len(d.tables) {
					return fmt.Errorf("%w: Huffman table %#x, expected 0 to 3", ErrDamaged, id)
				}
				d.tables[id] = t
				return nil
			})
		case marker == jpegmarkers.DRI:
			if len(body) < 2 {
				return h, d.Truncated()
			}
			d.interval = int(binary.BigEndian.Uint16(body))
		case marker == jpegmarkers.SOS:
			if err = d.scan(body); err == nil && d.frame.Complete() {
				return h, nil
			}
		case 0xc0 <= marker && marker <= 0xcf && marker != 0xc8 && marker != 0xcc:
			err = fmt.Errorf("%w: it is a JPEG of another process (SOF%d)", ErrUnsupported, marker-0xc0)
		}
		if err != nil {
			return h, err
		}
	}
}

// scan decodes one scan.
func (d *decoder) scan(b []byte) error {
	if d.frame == nil {
		return fmt.Errorf("%w: it has no frame header", ErrDamaged)
	}
	if len(b) < 1 || len(b) < 4+2*int(b[0]) {
		return d.Truncated()
	}
	n := int(b[0])
	if n < 1 || n > d.frame.Components {
		return fmt.Errorf("%w: a scan of %d components", ErrDamaged, n)
	}
	s := scan{w: d.frame.W, h: d.frame.H, stride: d.frame.Components, samples: d.samples}
	for i := range n {
		id, selector := b[1+2*i], b[2+2*i]>>4
		at, err := d.frame.Decode(id, failures)
		if err != nil {
			return err
		}
		if selector > 3 {
			return fmt.Errorf("%w: Huffman table %d, expected 0 to 3", ErrDamaged, selector)
		}
		t, err := d.tables[selector].Build(failures, maxCategory)
		if err != nil {
			return err
		}
		s.components = append(s.components, at)
		s.tables = append(s.tables, t)
	}
	rest := b[1+2*n:]
	s.predictor, s.shift = int(rest[0]), int(rest[2]&15)
	if s.predictor < 1 || s.predictor > 7 || s.shift >= d.frame.Bits {
		return fmt.Errorf("%w: predictor %d with point transform %d", ErrDamaged, s.predictor, s.shift)
	}
	if s.first = 1 << (d.frame.Bits - s.shift - 1); d.interval > 0 {
		if d.interval%s.w != 0 {
			return fmt.Errorf("%w: restarts within a row", ErrUnsupported)
		}
		s.restart = d.interval / s.w
	}
	var err error
	d.Data, err = s.decode(d.Data)
	return err
}
