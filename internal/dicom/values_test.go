package dicom

import (
	"encoding/binary"
	"testing"
)

func TestPalette_ReturnsTheHighByteInTheOrderOfTheFile(t *testing.T) {
	for _, c := range []struct {
		name                      string
		order                     binary.ByteOrder
		count, first, bits, value int
		signed                    bool
		entries                   string
		want                      byte
	}{
		{"16 bits, little endian", binary.LittleEndian, 2, 0, 16, 1, false, "\x12\x34\xab\xcd", 0xcd},
		{"16 bits, big endian", binary.BigEndian, 2, 0, 16, 1, false, "\x12\x34\xab\xcd", 0xab},
		{"8 bits, little endian", binary.LittleEndian, 2, 0, 8, 1, false, "\x12\x34", 0x34},
		{"8 bits in swapped pairs, big endian", binary.BigEndian, 2, 0, 8, 1, false, "\x12\x34", 0x12},
		{"8 bits in words, little endian", binary.LittleEndian, 2, 0, 8, 1, false, "\x12\x00\x34\x00", 0x34},
		{"8 bits in words, big endian", binary.BigEndian, 2, 0, 8, 1, false, "\x00\x12\x00\x34", 0x34},
		{"a value below the first", binary.LittleEndian, 2, 5, 8, 1, false, "\x12\x34", 0x12},
		{"a value above the last", binary.LittleEndian, 2, 5, 8, 100, false, "\x12\x34", 0x34},
		{"a negative first value", binary.LittleEndian, 2, 0xffff, 8, 0, true, "\x12\x34", 0x34},
	} {
		p := palette{count: c.count, first: c.first, bits: c.bits, entries: []byte(c.entries)}
		if err := p.check(c.order); err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if got := p.at(c.value, c.signed); got != c.want {
			t.Errorf("%s: %#x, expected %#x", c.name, got, c.want)
		}
	}
}
