package jpegextended

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/deepmed/anomaly/internal/jpegmarkers"
)

// Errors of Decode.
var (
	// ErrDamaged is returned, wrapped, for bytes that are not such a JPEG.
	ErrDamaged = errors.New("damaged JPEG of 12 bits")
	// ErrUnsupported is returned, wrapped, for a JPEG of another process.
	ErrUnsupported = errors.New("unsupported JPEG of 12 bits")
)

var failures = jpegmarkers.Errors{Damaged: ErrDamaged, Unsupported: ErrUnsupported}

// Header is the size and the depth in the frame header.
type Header = jpegmarkers.Header

const (
	sof1 = 0xc1
	dqt  = 0xdb
	// depth is the number of bits of a sample.
	depth = 12
)

type decoder struct {
	jpegmarkers.Reader
	frame         *jpegmarkers.Frame // nil before the frame header
	quantizations []byte             // the number of each component's table
	steps         [4]*[blockSize]uint16
	dc, ac        [4]jpegmarkers.Huffman
	interval      int // blocks of each component between restarts, or 0
	samples       []uint16
}

// Decode decodes a JPEG of 12 bits. It calls check with the header before it allocates memory
// for the samples, and returns check's error. The samples of a pixel are adjacent. The errors
// are ErrDamaged and ErrUnsupported, wrapped.
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
		case marker == sof1:
			if h, err = d.start(body); err == nil {
				if err = check(h); err == nil {
					d.samples = make([]uint16, h.Samples())
				}
			}
		case marker == dqt:
			err = d.quantization(body)
		case marker == jpegmarkers.DHT:
			err = jpegmarkers.ReadHuffman(body, failures, func(id byte, t jpegmarkers.Huffman) error {
				switch class, at := id>>4, id&15; {
				case class == 0 && at < 4:
					d.dc[at] = t
				case class == 1 && at < 4:
					d.ac[at] = t
				default:
					return fmt.Errorf("%w: Huffman table %#x, expected 0 to 3 of class 0 or 1", ErrDamaged, id)
				}
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

// start reads the frame header.
func (d *decoder) start(body []byte) (Header, error) {
	if d.frame != nil {
		return Header{}, fmt.Errorf("%w: it has two frame headers", ErrDamaged)
	}
	f, err := jpegmarkers.ReadFrame(body, failures)
	if err != nil {
		return Header{}, err
	}
	if f.Bits != depth {
		return Header{}, fmt.Errorf("%w: it has %d bits per sample", ErrUnsupported, f.Bits)
	}
	for c := range f.Components {
		d.quantizations = append(d.quantizations, body[8+3*c])
	}
	d.frame = f
	return f.Header, nil
}

// quantization reads the tables of a DQT segment.
func (d *decoder) quantization(b []byte) error {
	for len(b) > 0 {
		wide, id := b[0]>>4, b[0]&15
		if wide > 1 || id > 3 {
			return fmt.Errorf("%w: quantization table %#x", ErrDamaged, b[0])
		}
		b = b[1:]
		size := blockSize * (1 + int(wide))
		if len(b) < size {
			return d.Truncated()
		}
		t := new([blockSize]uint16)
		for i := range t {
			if wide == 1 {
				t[i] = binary.BigEndian.Uint16(b[2*i:])
			} else {
				t[i] = uint16(b[i])
			}
		}
		d.steps[id] = t
		b = b[size:]
	}
	return nil
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
	s := scan{w: d.frame.W, h: d.frame.H, stride: d.frame.Components, samples: d.samples, restart: d.interval}
	for i := range n {
		id, dc, ac := b[1+2*i], b[2+2*i]>>4, b[2+2*i]&15
		at, err := d.frame.Decode(id, failures)
		if err != nil {
			return err
		}
		q := d.quantizations[at]
		if dc > 3 || ac > 3 || q > 3 || d.steps[q] == nil {
			return fmt.Errorf("%w: a component has no table", ErrDamaged)
		}
		c := component{at: at, steps: d.steps[q]}
		if c.dc, err = d.dc[dc].Build(failures, maxDC); err != nil {
			return err
		}
		if c.ac, err = d.ac[ac].Build(failures, 0xff); err != nil {
			return err
		}
		s.components = append(s.components, c)
	}
	var err error
	d.Data, err = s.decode(d.Data)
	return err
}
