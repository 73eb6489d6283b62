package imagefile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
)

// The checks here refuse files whose header promises more pixels than their
// bytes can hold, before a decoder allocates for them: a bomb then has to be as
// large as an honest image. Each ratio is what the format can reach at most,
// not what is usual, so that no whole image is refused.
const (
	// deflateRatio is the most that deflate expands, by its longest match of
	// 258 bytes in 2 bits.
	deflateRatio = 1032
	// lzwRatio is above what 12-bit codes for up to 3839 bytes each can reach
	// on average, dictionary growth and clear codes included.
	lzwRatio = 4096
	// packBitsRatio is 128 equal bytes in two.
	packBitsRatio = 64
	// jpegPixelsPerByte comes from at least one bit for each 8×8 block.
	jpegPixelsPerByte = 8 * 64
	// vp8PixelsPerByte is twice what two bits for each 16×16 block allow.
	vp8PixelsPerByte = 2048
	// vp8lPixelsPerByte is a choice: lossless WebP can code a blank image of
	// any size in a few bytes, and no image that shows anything comes near.
	vp8lPixelsPerByte = 16384
	// blankPixels may always be held by a few bytes: small blank images are
	// harmless.
	blankPixels = 1 << 20
	// maxScans bounds the scans of a JPEG. Progressive encoders write about
	// ten; each costs a pass over all blocks for a few bytes of file.
	maxScans = 100
)

// plausible refuses an image that needs more units (bytes or pixels) than the
// file's length can hold at perByte units a byte.
func plausible(length int, units int64, perByte int64) error {
	if units > blankPixels && units > perByte*int64(length) {
		return fmt.Errorf("%w: the header promises more than %d bytes can hold", ErrImage, length)
	}
	return nil
}

// plausiblePNG refuses a PNG whose first chunk is not IHDR, as the standard does:
// the decoder passes over others before it, and the depth would be looked for in
// what they hold. DecodeConfig has found the chunk.
func plausiblePNG(data []byte, c image.Config) error {
	if string(data[12:16]) != "IHDR" {
		return fmt.Errorf("%w: the PNG does not begin with its header", ErrImage)
	}
	depth := int64(data[24])
	samples := map[byte]int64{0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[data[25]]
	return plausible(len(data), (int64(c.Width)*depth*samples+7)/8*int64(c.Height), deflateRatio)
}

func plausibleBMP(data []byte, c image.Config) error {
	bits := int64(binary.LittleEndian.Uint16(data[28:]))
	row := (int64(c.Width)*bits + 31) / 32 * 4
	if row*int64(c.Height) > int64(len(data)) {
		return fmt.Errorf("%w: truncated BMP: %d bytes for %d×%d pixels", ErrImage, len(data), c.Width, c.Height)
	}
	return nil
}

func plausibleJPEG(data []byte, c image.Config) error {
	if n := countScans(data); n > maxScans {
		return fmt.Errorf("%w: a JPEG of more than %d scans", ErrImage, maxScans)
	}
	return plausible(len(data), int64(c.Width)*int64(c.Height), jpegPixelsPerByte)
}

// countScans counts the start-of-scan markers of a JPEG, and stops above
// maxScans. It walks the segments as the decoder does, so that a thumbnail
// inside one does not count.
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
		case m == 0xff: // a fill byte: the marker may follow
		case m == 0 || m == soi || m == tem || rst0 <= m && m <= rst7:
			p++ // inside a scan, or a marker that stands alone
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

// plausibleWebP looks for the chunk that holds the pixels.
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
