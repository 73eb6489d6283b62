package dicom

import (
	"encoding/binary"
	"errors"
	"math"
)

// rescale is the linear transformation of stored values.
type rescale struct{ slope, intercept float64 }

// window is the range of values that is shown.
type window struct {
	center, width float64
	function      string
}

// palette is one colour of a palette.
type palette struct {
	count, first, bits int
	entries            []byte
	wide               bool // entries have 2 bytes
	order              binary.ByteOrder
}

// describe reads a palette's descriptor.
func (p *palette) describe(order binary.ByteOrder, value []byte) error {
	if len(value) < 6 {
		return errStructure
	}
	p.count, p.first, p.bits = int(order.Uint16(value)), int(order.Uint16(value[2:])), int(order.Uint16(value[4:]))
	if p.count == 0 {
		p.count = 1 << 16
	}
	return nil
}

// check checks that the entries fit the descriptor.
func (p *palette) check(order binary.ByteOrder) error {
	p.order = order
	p.wide = p.bits == 16 || len(p.entries) >= 2*p.count
	size := p.count
	if p.wide {
		size *= 2
	}
	if p.count == 0 || p.bits != 8 && p.bits != 16 || len(p.entries) < size {
		return errors.New("the palette of the DICOM file is missing or damaged: convert it to RGB")
	}
	return nil
}

// at returns the 8-bit colour of a stored value. Values outside the palette have its first
// or last colour.
func (p *palette) at(v int, signed bool) byte {
	first := p.first
	if signed {
		first = int(int16(first))
	}
	i := min(max(v-first, 0), p.count-1)
	if !p.wide {
		if p.order == binary.BigEndian && i^1 < len(p.entries) {
			i ^= 1 // its value representation is OW
		}
		return p.entries[i]
	}
	c := p.order.Uint16(p.entries[2*i:])
	if p.bits == 16 {
		return byte(c >> 8)
	}
	return byte(c)
}

// number returns the stored value of a sample: its stored bits, with their sign.
func (f *file) number(bits uint16) int {
	v := int(bits) >> (f.highBit + 1 - f.stored) & (1<<f.stored - 1)
	if f.signed && v >= 1<<(f.stored-1) {
		v -= 1 << f.stored
	}
	return v
}

// value returns the value of a sample in the units of the modality, before the window.
func (f *file) value(bits uint16) float64 {
	v := f.number(bits)
	if f.modality.present() {
		return float64(f.modality.at(v, f.signed))
	}
	return f.rescaled(v)
}

// ends returns the lowest and the highest value that a sample can have.
func (f *file) ends() (low, high float64) {
	if f.modality.present() {
		return 0, float64(f.modality.highest())
	}
	from, to := 0, 1<<f.stored-1
	if f.signed {
		from, to = -1<<(f.stored-1), 1<<(f.stored-1)-1
	}
	a, b := f.rescaled(from), f.rescaled(to)
	return min(a, b), max(a, b)
}

func (f *file) rescaled(v int) float64 {
	if !f.has[tagSlope] && !f.has[tagIntercept] {
		return float64(v)
	}
	slope := f.rescale.slope
	if !f.has[tagSlope] {
		slope = 1
	}
	return float64(v)*slope + f.rescale.intercept
}

// greys returns the 16-bit grey of every pattern of a sample's bits: the rescaled value
// within the window or its brightness by the look-up table, or within all values that the
// bits can have, from 0 to 65535.
func (f *file) greys() (*[1 << 16]uint16, error) {
	shown, err := f.shown()
	if err != nil {
		return nil, err
	}
	t := new([1 << 16]uint16)
	for bits := range 1 << min(16, f.highBit+1) {
		v := uint16(math.Floor(shown(f.value(uint16(bits)))*math.MaxUint16 + 0.5))
		if f.photometric == "MONOCHROME1" {
			v = math.MaxUint16 - v
		}
		t[bits] = v
	}
	for bits := 1 << min(16, f.highBit+1); bits < len(t); bits++ {
		t[bits] = t[bits&(1<<(f.highBit+1)-1)]
	}
	return t, nil
}

// shown returns the function from a value to its brightness, 0 to 1 (DICOM PS3.3,
// C.11.2.1.2 and C.11.2.1.3).
func (f *file) shown() (func(v float64) float64, error) {
	unit := func(v float64) float64 { return min(max(v, 0), 1) }
	from, to := f.ends()
	if f.voi.present() { // it takes precedence over a window, as in pydicom
		signed := f.signed || from < 0
		return func(v float64) float64 {
			return float64(f.voi.at(int(math.Floor(min(max(v, -1<<17), 1<<17)+0.5)), signed)) / float64(f.voi.highest())
		}, nil
	}
	if !f.has[tagWindowWidth] || !f.has[tagWindowCenter] {
		if from == to || math.IsInf(to-from, 0) {
			return nil, errors.New("the rescale slope of the DICOM file makes all values equal: export it again")
		}
		return func(v float64) float64 { return unit((v - from) / (to - from)) }, nil
	}
	c, w := f.window.center, f.window.width
	switch f.window.function {
	case "SIGMOID":
		if w <= 0 {
			return nil, errWindow
		}
		return func(v float64) float64 { return unit(1 / (1 + math.Exp(-4*(v-c)/w))) }, nil
	case "LINEAR_EXACT":
		if w <= 0 {
			return nil, errWindow
		}
	default:
		if w < 1 {
			return nil, errWindow
		}
		c, w = c-0.5, w-1
	}
	return func(v float64) float64 {
		switch {
		case v <= c-w/2:
			return 0
		case v > c+w/2:
			return 1
		}
		return unit((v-c)/w + 0.5)
	}, nil
}

var errWindow = errors.New("the window of the DICOM file has no width: export it with another window")
