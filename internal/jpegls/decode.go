package jpegls

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/deepmed/anomaly/internal/jpegmarkers"
)

// Errors of Decode.
var (
	// ErrDamaged is returned, wrapped, for bytes that are not a JPEG-LS.
	ErrDamaged = errors.New("damaged JPEG-LS")
	// ErrUnsupported is returned, wrapped, for a JPEG-LS with a feature that is not read.
	ErrUnsupported = errors.New("unsupported JPEG-LS")
)

var failures = jpegmarkers.Errors{Damaged: ErrDamaged, Unsupported: ErrUnsupported}

// Header is the size and the depth in the frame header.
type Header = jpegmarkers.Header

// Markers of JPEG-LS alone.
const sof55, lse = 0xf7, 0xf8

// preset are the coding parameters of T.87, C.2.4.1.1. Zeros mean the default.
type preset struct{ maxVal, t1, t2, t3, reset int }

type decoder struct {
	jpegmarkers.Reader
	frame   *jpegmarkers.Frame // nil before the frame header
	preset  preset
	samples []uint16
}

// Decode decodes a JPEG-LS. It calls check with the header before it allocates memory for
// the samples, and returns check's error. The samples of a pixel are adjacent. The errors
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
			err = fmt.Errorf("%w: it ends before all components are decoded", ErrDamaged)
		case marker == sof55:
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
		case marker == lse:
			err = d.parameters(body)
		case marker == jpegmarkers.DRI:
			err = fmt.Errorf("%w: it has restarts", ErrUnsupported)
		case marker == jpegmarkers.SOS:
			if err = d.scan(body); err == nil && d.frame.Complete() {
				return h, nil
			}
		case 0xc0 <= marker && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc:
			err = fmt.Errorf("%w: it is a JPEG of another process (SOF%d)", ErrUnsupported, marker-0xc0)
		}
		if err != nil {
			return h, err
		}
	}
}

// parameters reads an LSE segment.
func (d *decoder) parameters(b []byte) error {
	if len(b) < 1 {
		return d.Truncated()
	}
	if b[0] != 1 {
		return fmt.Errorf("%w: it has a mapping table or more than 65535 pixels a side", ErrUnsupported)
	}
	if len(b) < 11 {
		return d.Truncated()
	}
	at := func(i int) int { return int(binary.BigEndian.Uint16(b[1+2*i:])) }
	d.preset = preset{at(0), at(1), at(2), at(3), at(4)}
	return nil
}

// How the components of a scan are interleaved.
const (
	separate = iota
	byLine
	bySample
)

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
	var components []int
	for i := range n {
		id, mapping := b[1+2*i], b[2+2*i]
		at, err := d.frame.Decode(id, failures)
		if err != nil {
			return err
		}
		if mapping != 0 {
			return fmt.Errorf("%w: it has a mapping table", ErrUnsupported)
		}
		components = append(components, at)
	}
	near, interleave, point := int(b[1+2*n]), int(b[2+2*n]), int(b[3+2*n]&15)
	if interleave > bySample || (interleave == separate) != (n == 1) && !(n == 1) {
		return fmt.Errorf("%w: interleave mode %d of %d components", ErrDamaged, interleave, n)
	}
	if point != 0 {
		return fmt.Errorf("%w: it has a point transform", ErrUnsupported)
	}
	m, err := newModel(d.preset, d.frame.Bits, near)
	if err != nil {
		return err
	}
	s := scan{model: m, w: d.frame.W, h: d.frame.H, stride: d.frame.Components, components: components, samples: d.samples, r: reader{data: d.Data}}
	if n > 1 && interleave == bySample {
		err = s.bySample()
	} else {
		err = s.byLine()
	}
	d.Data = s.r.rest()
	return err
}

// newModel returns the state of T.87, A.2.1 and A.8, at the beginning of a scan.
func newModel(p preset, depth, near int) (*model, error) {
	if p.maxVal == 0 {
		p.maxVal = 1<<depth - 1
	}
	if p.maxVal > 1<<depth-1 || near > min(255, p.maxVal/2) {
		return nil, fmt.Errorf("%w: the largest sample %d with an error of %d", ErrDamaged, p.maxVal, near)
	}
	t1, t2, t3 := thresholds(p.maxVal, near)
	if p.t1 == 0 {
		p.t1 = t1
	}
	if p.t2 == 0 {
		p.t2 = t2
	}
	if p.t3 == 0 {
		p.t3 = t3
	}
	if p.reset == 0 {
		p.reset = 64
	}
	if p.t1 < near+1 || p.t2 < p.t1 || p.t3 < p.t2 || p.t3 > p.maxVal || p.reset < 3 {
		return nil, fmt.Errorf("%w: its coding parameters are out of range", ErrDamaged)
	}
	m := &model{maxVal: p.maxVal, near: near, reset: p.reset}
	m.span = (p.maxVal+2*near)/(2*near+1) + 1
	m.codeBits = bits.Len(uint(m.span - 1))
	sampleBits := max(2, bits.Len(uint(p.maxVal)))
	m.limit = 2 * (sampleBits + max(8, sampleBits))
	a := max(2, (m.span+32)/64)
	for i := range m.contexts {
		m.contexts[i] = context{a: a, n: 1}
	}
	for i := range m.runs {
		m.runs[i] = runContext{a: a, n: 1}
	}
	m.quantized = make([]int8, 2*p.maxVal+1)
	for i := range m.quantized {
		m.quantized[i] = quantize(i-p.maxVal, p, near)
	}
	return m, nil
}

// thresholds returns the default thresholds of gradients (T.87, C.2.4.1.1.1).
func thresholds(maxVal, near int) (t1, t2, t3 int) {
	clamp := func(v, low int) int {
		if v > maxVal || v < low {
			return low
		}
		return v
	}
	if maxVal >= 128 {
		f := (min(maxVal, 4095) + 128) / 256
		t1 = clamp(f+2+3*near, near+1)
		t2 = clamp(4*f+3+5*near, t1)
		t3 = clamp(17*f+4+7*near, t2)
		return t1, t2, t3
	}
	f := 256 / (maxVal + 1)
	t1 = clamp(max(2, 3/f+3*near), near+1)
	t2 = clamp(max(3, 7/f+5*near), t1)
	t3 = clamp(max(4, 21/f+7*near), t2)
	return t1, t2, t3
}

// quantize returns the region of a gradient, -4 to 4.
func quantize(d int, p preset, near int) int8 {
	abs, sign := d, int8(1)
	if d < 0 {
		abs, sign = -d, -1
	}
	switch {
	case abs <= near:
		return 0
	case abs < p.t1:
		return sign
	case abs < p.t2:
		return 2 * sign
	case abs < p.t3:
		return 3 * sign
	}
	return 4 * sign
}
