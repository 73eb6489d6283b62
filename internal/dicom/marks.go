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
	jfif, ids := jpegMarks(jpeg)
	switch {
	case ids == "RGB" || ids == "rgb":
		f.photometric = "RGB"
	case jfif && f.photometric == "RGB" && f.allocated == 8:
		f.photometric = "YBR_FULL"
	}
}

// jpegMarks reports whether a JPEG is a JFIF, and returns the names of three components.
// It reads the segments up to the frame header.
func jpegMarks(data []byte) (jfif bool, ids string) {
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
			return jfif, ""
		}
		body := data[p+4 : end]
		switch {
		case app0 <= marker && marker <= app15:
			jfif = jfif || bytes.HasPrefix(body, []byte("JFIF"))
		case marker == sof55 || 0xc0 <= marker && marker <= 0xcf && marker != dht && marker != jpg && marker != dac:
			if len(body) >= 6+3*3 && body[5] == 3 {
				ids = string([]byte{body[6], body[9], body[12]})
			}
			return jfif, ids
		}
		p = end
	}
	return jfif, ""
}
