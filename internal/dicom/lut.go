package dicom

import (
	"encoding/binary"
	"errors"
)

// lut is a look-up table for the rescaled values (Modality LUT) or for their brightness (VOI
// LUT) (DICOM PS3.3, C.11.1 and C.11.2).
type lut struct {
	count, bits int
	first       uint16
	vr          string // of the descriptor; empty in implicit encoding
	described   bool
	data        []byte
	order       binary.ByteOrder
}

// take reads the descriptor or the data of a table.
func (l *lut) take(s *source, e element, value []byte) error {
	switch e.tag {
	case tagLUTDescriptor:
		if len(value) < 6 {
			return errStructure
		}
		l.count, l.first, l.bits = int(s.order.Uint16(value)), s.order.Uint16(value[2:]), int(s.order.Uint16(value[4:]))
		if l.count == 0 {
			l.count = 1 << 16
		}
		l.vr, l.described = e.vr, true
	case tagLUTData:
		l.data, l.order = value, s.order
	}
	return nil
}

// present reports whether the file has the table.
func (l *lut) present() bool { return l.described || l.data != nil }

// check checks that the entries fit the descriptor.
func (l *lut) check() error {
	const minBits, maxBits = 8, 16
	switch {
	case !l.present():
		return nil
	case !l.described || l.bits < minBits || l.bits > maxBits:
		return errors.New("a look-up table of the DICOM file has no usable descriptor: export it with a window")
	case len(l.data) < l.count || l.bits > minBits && len(l.data) < 2*l.count:
		return errors.New("a look-up table of the DICOM file is shorter than it states: export it with a window")
	}
	return nil
}

// checkTables checks the look-up tables of a grey image.
func (f *file) checkTables() error {
	if f.samples != 1 || f.photometric == "PALETTE COLOR" {
		return nil
	}
	if err := f.modality.check(); err != nil {
		return err
	}
	return f.voi.check()
}

// highest is the highest value that an entry can have.
func (l *lut) highest() int { return 1<<l.bits - 1 }

// at returns the entry of a value. Values outside the table have its first or last entry.
// signed is whether the first value of the table is, where its value representation does
// not say.
func (l *lut) at(v int, signed bool) int {
	first := int(l.first)
	if l.vr == "SS" || l.vr == "" && signed {
		first = int(int16(l.first))
	}
	i := min(max(v-first, 0), l.count-1)
	if len(l.data) < 2*l.count {
		return int(l.data[i])
	}
	return min(int(l.order.Uint16(l.data[2*i:])), l.highest())
}
