package imagefile

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"encoding/hex"
	"io"
	"regexp"
	"strings"
)

// maxPNGText bounds a decompressed text chunk of a PNG, in bytes. It is Pillow's limit.
const maxPNGText = 1 << 20

// jpegOrientation returns the orientation of a JPEG's EXIF, or else of its XMP; 0 if
// there is none. Like Pillow, it reads the segments before the first scan and joins
// EXIF that is split into several segments.
func jpegOrientation(data []byte) int {
	var exif, xmp []byte
	jpegSegments(data, func(marker byte, body []byte) bool {
		const app1 = 0xe1
		if marker != app1 {
			return true
		}
		if b, ok := bytes.CutPrefix(body, []byte("Exif\x00\x00")); ok {
			exif = append(exif, b...)
		} else if b, ok := bytes.CutPrefix(body, []byte("http://ns.adobe.com/xap/1.0/\x00")); ok {
			xmp = b
		}
		return true
	})
	return orientationOf(exif, xmp)
}

// jpegSegments calls segment for the segments before the first scan, until it returns
// false.
func jpegSegments(data []byte, segment func(marker byte, body []byte) bool) {
	const sos, eoi = 0xda, 0xd9
	for p := 2; p+4 <= len(data); {
		m := data[p+1]
		switch {
		case data[p] != 0xff: // not a marker: decoders search for the next one
			p++
			continue
		case m == 0xff || m == 0 || m == 0x01 || 0xd0 <= m && m <= 0xd8:
			p++
			continue
		case m == sos || m == eoi:
			return
		}
		n := int(binary.BigEndian.Uint16(data[p+2:]))
		if n < 2 || p+2+n > len(data) || !segment(m, data[p+4:p+2+n]) {
			return
		}
		p += 2 + n
	}
}

// pngOrientation returns the orientation of a PNG's eXIf chunk, or else of the text
// chunk in which ImageMagick stores EXIF, or else of its XMP; 0 if there is none.
func pngOrientation(data []byte) int {
	var exif, xmp []byte
	hasEXIF := false
	pngChunks(data, func(id string, body []byte) {
		key, rest, ok := bytes.Cut(body, []byte{0})
		switch {
		case id == "eXIf":
			exif, hasEXIF = body, true
		case !ok:
		case id == "zTXt" && len(rest) > 0 && string(key) == "Raw profile type exif" && !hasEXIF:
			exif = rawProfile(inflate(rest[1:]))
		case id == "tEXt" && string(key) == "Raw profile type exif" && !hasEXIF:
			exif = rawProfile(rest)
		case id == "iTXt" && string(key) == "XML:com.adobe.xmp" && len(rest) > 2:
			packed := rest[0] != 0
			if parts := bytes.SplitN(rest[2:], []byte{0}, 3); len(parts) == 3 {
				if xmp = parts[2]; packed {
					xmp = inflate(xmp)
				}
			}
		}
	})
	return orientationOf(exif, xmp)
}

// pngChunks calls chunk for the complete chunks of a PNG. It returns the end of the
// last one and whether that is the end chunk.
func pngChunks(data []byte, chunk func(id string, body []byte)) (end int, complete bool) {
	p := min(8, len(data))
	for p+12 <= len(data) {
		n := int64(binary.BigEndian.Uint32(data[p:]))
		if int64(p)+12+n > int64(len(data)) {
			break
		}
		id := string(data[p+4 : p+8])
		chunk(id, data[p+8:p+8+int(n)])
		p += 12 + int(n)
		if id == "IEND" {
			return p, true
		}
	}
	return p, false
}

// inflate returns the decompressed text, or nil if it is damaged or too large.
func inflate(packed []byte) []byte {
	r, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(r, maxPNGText+1))
	if err != nil || len(b) > maxPNGText {
		return nil
	}
	return b
}

// rawProfile decodes ImageMagick's text: three lines of header, then hexadecimal.
func rawProfile(text []byte) []byte {
	lines := strings.SplitN(string(text[:min(len(text), maxPNGText)]), "\n", 4)
	if len(lines) < 4 {
		return nil
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(lines[3]), ""))
	if err != nil {
		return nil
	}
	return b
}

// webpOrientation returns the orientation of a WebP's EXIF, or else of its XMP; 0 if
// there is none.
func webpOrientation(data []byte) int {
	var exif, xmp []byte
	for rest := data[min(12, len(data)):]; ; {
		id, body, after, ok := webpChunk(rest)
		if !ok {
			return orientationOf(exif, xmp)
		}
		switch id {
		case "EXIF":
			exif = body
		case "XMP ":
			xmp = body
		}
		rest = after
	}
}

// orientationOf returns the orientation of EXIF or, if EXIF has none, of XMP. Other
// values than 1 to 8 are 0.
func orientationOf(exif, xmp []byte) int {
	v, ok := exifOrientation(exif)
	if !ok {
		v = xmpOrientation(xmp)
	}
	if v < 1 || v > 8 {
		return 0
	}
	return v
}

// exifOrientation returns the orientation in the first directory of EXIF. ok is false
// if there is none.
func exifOrientation(exif []byte) (v int, ok bool) {
	for range 2 { // Some writers repeat the prefix.
		exif = bytes.TrimPrefix(exif, []byte("Exif\x00\x00"))
	}
	if !isTIFF(exif) {
		return 0, false
	}
	d, err := readTIFFDirectory(exif)
	if err != nil && len(d.entries) == 0 {
		return 0, false
	}
	if _, ok := d.entries[tagOrientation]; !ok {
		return 0, false
	}
	return d.first(tagOrientation), true
}

var xmpTag = regexp.MustCompile(`tiff:Orientation(?:="|>)([0-9])`)

// xmpOrientation returns the orientation in XMP, by Pillow's expression, or 0.
func xmpOrientation(xmp []byte) int {
	if m := xmpTag.FindSubmatch(xmp); m != nil {
		return int(m[1][0] - '0')
	}
	return 0
}
