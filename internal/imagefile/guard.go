package imagefile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
)

// Decompression bombs: the checks refuse files whose header announces more pixels than
// their bytes can encode, before a decoder allocates memory for them. Each ratio is the
// maximum of the format, so that no valid image is refused.
const (
	// deflateRatio is the largest ratio of deflate: a match of 258 bytes in 2 bits.
	deflateRatio = 1032
	// lzwRatio is above the average of 12-bit codes for up to 3839 bytes each, with
	// the growth of the dictionary and clear codes.
	lzwRatio = 4096
	// packBitsRatio is 128 equal bytes in 2 bytes.
	packBitsRatio = 64
	// jpegPixelsPerByte allows one bit for each 8×8 block.
	jpegPixelsPerByte = 8 * 64
	// vp8PixelsPerByte is twice the ratio of two bits for each 16×16 block.
	vp8PixelsPerByte = 2048
	// vp8lPixelsPerByte is arbitrary: lossless WebP encodes a blank image of any size
	// in a few bytes, and real images are far below this ratio.
	vp8lPixelsPerByte = 16384
	// blankPixels are accepted in any number of bytes: small blank images are
	// harmless.
	blankPixels = 1 << 20
	// maxScans bounds the scans of a JPEG. Each costs a pass over all blocks for a
	// few bytes of file. Progressive encoders write about ten.
	maxScans = 100
)

// plausible returns ErrImage, wrapped, if length bytes of file cannot encode the units
// (bytes or pixels) at perByte units per byte.
func plausible(length int, units int64, perByte int64) error {
	if units > blankPixels && units > perByte*int64(length) {
		return fmt.Errorf("%w: the header announces more pixels than %d bytes can encode", ErrImage, length)
	}
	return nil
}

// plausiblePNG also refuses a PNG whose first chunk is not IHDR, which the standard
// requires: the decoder skips chunks before IHDR, but the offsets below do not.
// DecodeConfig has checked that the chunk exists.
func plausiblePNG(data []byte, c image.Config) error {
	if string(data[12:16]) != "IHDR" {
		return fmt.Errorf("%w: the first chunk of the PNG is not its header", ErrImage)
	}
	depth := int64(data[24])
	samples := map[byte]int64{0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[data[25]]
	return plausible(len(data), (int64(c.Width)*depth*samples+7)/8*int64(c.Height), deflateRatio)
}

func plausibleJPEG(data []byte, c image.Config) error {
	if n := countScans(data); n > maxScans {
		return fmt.Errorf("%w: a JPEG of more than %d scans", ErrImage, maxScans)
	}
	return plausible(len(data), int64(c.Width)*int64(c.Height), jpegPixelsPerByte)
}

// countScans counts the start-of-scan markers of a JPEG and stops above maxScans. It
// skips the content of segments, as the decoder does: it can hold a thumbnail.
func countScans(data []byte) int {
	const (
		soi, eoi, sos, tem = 0xd8, 0xd9, 0xda, 0x01
		rst0, rst7         = 0xd0, 0xd7
	)
	scans := 0
	for p := 2; ; {
		i := bytes.IndexByte(data[min(p, len(data)):], 0xff)
		if i < 0 {
			return scans
		}
		p += i + 1
		if p >= len(data) {
			return scans
		}
		m := data[p]
		switch {
		case m == 0xff: // a fill byte before a marker
		case m == 0 || m == soi || m == tem || rst0 <= m && m <= rst7:
			p++ // a byte of a scan, or a marker without a segment
		case m == eoi:
			return scans
		default:
			if m == sos {
				if scans++; scans > maxScans {
					return scans
				}
			}
			if p+3 > len(data) {
				return scans
			}
			p += 1 + int(binary.BigEndian.Uint16(data[p+1:]))
		}
	}
}

// plausibleWebP selects the ratio by the chunk that holds the pixels.
func plausibleWebP(data []byte, c image.Config) error {
	perByte := int64(vp8PixelsPerByte)
	for p := 12; p+8 <= len(data); {
		id, n := string(data[p:p+4]), int(binary.LittleEndian.Uint32(data[p+4:]))
		if id == "VP8L" {
			perByte = vp8lPixelsPerByte
		}
		p += 8 + n + n&1
	}
	return plausible(len(data), int64(c.Width)*int64(c.Height), perByte)
}
