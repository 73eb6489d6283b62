package dicom

import (
	"bytes"
	"encoding/binary"
)

// conform changes the photometric interpretation of a colour image where its JPEG shows
// another one, as pydicom does: some programs write RGB for colours that a JPEG library
// converted. Components that are named R, G and B are RGB, and a JFIF has YCbCr.
func (f *file) conform(jpeg []byte) {
	if f.samples != 3 || f.syntax.codec != codecJPEG && f.syntax.codec != codecLosslessJPEG && f.syntax.codec != codecJPEGLS {
		return
	}
	m := marksOf(jpeg)
	switch {
	case m.ids == "RGB" || m.ids == "rgb":
		f.photometric = "RGB"
	case m.jfif && f.photometric == "RGB" && f.allocated == 8:
		f.photometric = "YBR_FULL"
	}
}

// marks are what the segments of a JPEG show up to its frame header.
type marks struct {
	jfif bool
	// ids are the names of three components.
	ids string
	// bits is the number of bits of a sample; 0 if there is no frame header.
	bits int
}

func marksOf(data []byte) (m marks) {
	const (
		app0, app15          = 0xe0, 0xef
		dht, jpg, dac, sof55 = 0xc4, 0xc8, 0xcc, 0xf7
	)
	for p := 2; p+4 <= len(data) && data[p] == 0xff; {
		marker := data[p+1]
		if marker == 0xff { // a fill byte
			p++
			continue
		}
		end := p + 2 + int(binary.BigEndian.Uint16(data[p+2:]))
		if end < p+4 || end > len(data) {
			return m
		}
		body := data[p+4 : end]
		switch {
		case app0 <= marker && marker <= app15:
			m.jfif = m.jfif || bytes.HasPrefix(body, []byte("JFIF"))
		case marker == sof55 || 0xc0 <= marker && marker <= 0xcf && marker != dht && marker != jpg && marker != dac:
			if len(body) > 0 {
				m.bits = int(body[0])
			}
			if len(body) >= 6+3*3 && body[5] == 3 {
				m.ids = string([]byte{body[6], body[9], body[12]})
			}
			return m
		}
		p = end
	}
	return m
}
