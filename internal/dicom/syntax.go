package dicom

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// codec is how a frame is encoded.
type codec int

const (
	codecNone codec = iota
	codecRLE
	codecJPEG
	// codecExtendedJPEG is a codecJPEG of 12 bits.
	codecExtendedJPEG
	codecLosslessJPEG
	codecJPEGLS
	codecJPEG2000
)

// syntax is a transfer syntax.
type syntax struct {
	uid, name    string
	codec        codec
	encapsulated bool
	// remedy ends the error for a syntax that is not read. It is empty for the others.
	remedy string
}

const (
	root           = "1.2.840.10008.1.2"
	implicitLittle = root
	explicitLittle = root + ".1"
	encapsulated   = root + ".1.98"
	deflated       = root + ".1.99"
	explicitBig    = root + ".2"
	runLength      = root + ".5"
	jpeg           = root + ".4."
)

const (
	uncompress = "convert it to an uncompressed file (Explicit VR Little Endian)"
	export     = "export its frames as images"
)

// syntaxes are the known transfer syntaxes by their identifier.
var syntaxes = func() map[string]syntax {
	m := map[string]syntax{}
	for _, s := range []syntax{
		{uid: implicitLittle, name: "implicit little endian"},
		{uid: explicitLittle, name: "explicit little endian"},
		{uid: encapsulated, name: "encapsulated uncompressed", encapsulated: true},
		{uid: deflated, name: "deflated"},
		{uid: explicitBig, name: "explicit big endian"},
		{uid: runLength, name: "RLE", codec: codecRLE, encapsulated: true},
		{uid: jpeg + "50", name: "JPEG baseline", codec: codecJPEG, encapsulated: true},
		{uid: jpeg + "51", name: "JPEG extended", codec: codecJPEG, encapsulated: true},
		{uid: jpeg + "57", name: "lossless JPEG", codec: codecLosslessJPEG, encapsulated: true},
		{uid: jpeg + "70", name: "lossless JPEG", codec: codecLosslessJPEG, encapsulated: true},
		{uid: jpeg + "80", name: "JPEG-LS", codec: codecJPEGLS, encapsulated: true},
		{uid: jpeg + "81", name: "JPEG-LS", codec: codecJPEGLS, encapsulated: true},
		{uid: jpeg + "90", name: "JPEG 2000", codec: codecJPEG2000, encapsulated: true},
		{uid: jpeg + "91", name: "JPEG 2000", codec: codecJPEG2000, encapsulated: true},

		{uid: jpeg + "92", name: "JPEG 2000 part 2", remedy: uncompress},
		{uid: jpeg + "93", name: "JPEG 2000 part 2", remedy: uncompress},
		{uid: jpeg + "94", name: "JPIP", remedy: uncompress},
		{uid: jpeg + "95", name: "JPIP", remedy: uncompress},
		{uid: jpeg + "100", name: "MPEG-2 video", remedy: export},
		{uid: jpeg + "101", name: "MPEG-2 video", remedy: export},
		{uid: jpeg + "102", name: "MPEG-4 video", remedy: export},
		{uid: jpeg + "103", name: "MPEG-4 video", remedy: export},
		{uid: jpeg + "104", name: "MPEG-4 video", remedy: export},
		{uid: jpeg + "105", name: "MPEG-4 video", remedy: export},
		{uid: jpeg + "106", name: "MPEG-4 video", remedy: export},
		{uid: jpeg + "107", name: "HEVC video", remedy: export},
		{uid: jpeg + "108", name: "HEVC video", remedy: export},
		{uid: jpeg + "110", name: "JPEG XL", remedy: uncompress},
		{uid: jpeg + "111", name: "JPEG XL", remedy: uncompress},
		{uid: jpeg + "112", name: "JPEG XL", remedy: uncompress},
		{uid: jpeg + "201", name: "high-throughput JPEG 2000", remedy: uncompress},
		{uid: jpeg + "202", name: "high-throughput JPEG 2000", remedy: uncompress},
		{uid: jpeg + "203", name: "high-throughput JPEG 2000", remedy: uncompress},
	} {
		m[s.uid] = s
	}
	return m
}()

// syntaxOf returns a transfer syntax that is read.
func syntaxOf(uid string) (syntax, error) {
	s, ok := syntaxes[uid]
	switch {
	case ok && s.remedy == "":
		return s, nil
	case ok:
		return s, fmt.Errorf("%s DICOM images are not read: %s", s.name, s.remedy)
	case strings.HasPrefix(uid, jpeg):
		return s, errors.New("DICOM images of a retired or unknown JPEG transfer syntax are not read: " + uncompress)
	}
	return s, errors.New("DICOM images of an unknown transfer syntax are not read: " + uncompress)
}

// WithoutPreamble reports whether bytes are the beginning of a DICOM file that lacks the
// preamble: the file meta information, or at least minElements well-formed elements from
// group 8 on, in ascending order and with short values.
func WithoutPreamble(head []byte) bool {
	const minElements = 4
	if len(head) < 8 || head[1] != 0 {
		return false
	}
	if head[0] == groupMeta {
		return string(head[:8]) == "\x02\x00\x00\x00UL\x04\x00"
	}
	if head[0] != 8 {
		return false
	}
	s := &source{data: head, order: binary.LittleEndian, implicit: !isVR(head[4:])}
	last := tag(0)
	for at, n := 0, 0; n < minElements; n++ {
		e, err := s.element(at)
		if err != nil || e.tag>>16 != 8 || n > 0 && e.tag <= last || e.length > 1024 || e.length%2 != 0 {
			return false
		}
		if at, err = s.end(e); err != nil {
			return false
		}
		last = e.tag
	}
	return true
}
