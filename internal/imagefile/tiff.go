package imagefile

import (
	"encoding/binary"
	"fmt"
	"image"
)

// TIFF tags and values that the checks and the orientation need.
const (
	tagWidth, tagHeight           = 256, 257
	tagBitsPerSample              = 258
	tagCompression                = 259
	tagPhotometric                = 262
	tagOrientation                = 274
	tagRowsPerStrip               = 278
	tagTileWidth, tagTileHeight   = 322, 323
	typeByte, typeShort, typeLong = 1, 3, 4
	compressionUnsaid             = 0
	compressionNone               = 1
	compressionG3, compressionG4  = 3, 4
	compressionLZW                = 5
	compressionDeflate            = 8
	compressionDeflateOld         = 32946
	compressionPackBits           = 32773
	blackIsZero                   = 1

	// maxTIFFBlocks bounds the strips or tiles: a decompressor is set up for
	// each, whatever little it holds.
	maxTIFFBlocks = 1 << 16
)

// tiffDirectory is what matters here of a TIFF's first directory; a tag that
// is missing is 0.
type tiffDirectory struct {
	compression, photometric, orientation              int
	rowsPerStrip, tileWidth, tileHeight, bits, samples int
}

// readTIFFDirectory reads the first directory. The decoder reads it again, and
// better: this one only has to see the same values.
func readTIFFDirectory(data []byte) (tiffDirectory, error) {
	var d tiffDirectory
	truncated := fmt.Errorf("%w: truncated TIFF", ErrImage)
	if len(data) < 8 {
		return d, truncated
	}
	var order binary.ByteOrder = binary.LittleEndian
	if data[0] == 'M' {
		order = binary.BigEndian
	}
	p := int64(order.Uint32(data[4:]))
	if p+2 > int64(len(data)) {
		return d, truncated
	}
	entries := int64(order.Uint16(data[p:]))
	if p+2+12*entries > int64(len(data)) {
		return d, truncated
	}
	for e := data[p+2 : p+2+12*entries]; len(e) > 0; e = e[12:] {
		v := 0
		count := order.Uint32(e[4:])
		switch order.Uint16(e[2:]) {
		case typeByte:
			v = int(e[8])
		case typeShort:
			v = int(order.Uint16(e[8:]))
		case typeLong:
			v = int(order.Uint32(e[8:]))
		}
		switch order.Uint16(e) {
		case tagCompression:
			d.compression = v
		case tagPhotometric:
			d.photometric = v
		case tagOrientation:
			d.orientation = v
		case tagRowsPerStrip:
			d.rowsPerStrip = v
		case tagTileWidth:
			d.tileWidth = v
		case tagTileHeight:
			d.tileHeight = v
		case tagBitsPerSample:
			d.samples, d.bits = int(min(count, 8)), v
			if count > 2 { // more shorts than the entry holds: the value is their place
				d.bits = 8
			}
		}
	}
	return d, nil
}

// plausible refuses a TIFF whose pixels the file cannot hold, or whose strips
// or tiles would make the decoder work or allocate out of proportion.
func (d tiffDirectory) plausible(length int, c image.Config, lim Limits) error {
	w, h := c.Width, c.Height
	bw, bh := w, h
	if d.tileWidth > 0 {
		bw, bh = d.tileWidth, max(d.tileHeight, 1)
	} else if d.rowsPerStrip > 0 {
		bh = min(h, d.rowsPerStrip)
	}
	if n := int64((w+bw-1)/bw) * int64((h+bh-1)/bh); n > maxTIFFBlocks {
		return fmt.Errorf("%w: a TIFF of %d strips or tiles, at most %d are read", ErrImage, n, maxTIFFBlocks)
	}
	// The decoder unpacks a strip into up to 8 bytes a pixel before it looks
	// at what it needs of them.
	if area := int64(bw) * int64(bh); d.packed() && area > max(blankPixels, int64(lim.MaxPixels)/4) {
		return fmt.Errorf("%w: a compressed TIFF strip or tile of %d pixels, at most %d are read",
			ErrTooLarge, area, lim.MaxPixels/4)
	}
	bits := int64(max(d.bits, 1)) * int64(max(d.samples, 1))
	size := (int64(w)*bits + 7) / 8 * int64(h)
	switch d.compression {
	case compressionNone, compressionUnsaid:
		return plausible(length, size, 1)
	case compressionLZW:
		return plausible(length, size, lzwRatio)
	case compressionDeflate, compressionDeflateOld:
		return plausible(length, size, deflateRatio)
	case compressionPackBits:
		return plausible(length, size, packBitsRatio)
	}
	return nil // fax: one bit can code a row
}

func (d tiffDirectory) packed() bool {
	return d.compression != compressionNone && d.compression != compressionUnsaid
}

// inverted reports whether the decoder swaps black and white: it reads fax
// compression as if 0 were always white, where libtiff goes by the photometric
// interpretation.
func (d tiffDirectory) inverted() bool {
	return d.photometric == blackIsZero && (d.compression == compressionG3 || d.compression == compressionG4)
}

// oriented turns the image as TIFF's orientation says, 1 to 8; any other value
// leaves it as it is. Pillow does this for TIFF, and for no other format.
func (img *RGB) oriented(orientation int) *RGB {
	if orientation < 2 || orientation > 8 {
		return img
	}
	w, h := img.W, img.H
	swap := orientation >= 5
	out := newRGB(w, h)
	if swap {
		out.W, out.H = h, w
	}
	for y := range out.H {
		for x := range out.W {
			sx, sy := x, y
			if swap {
				sx, sy = y, x
			}
			// What is left after the transposition is a mirror in one axis
			// of the source, in both or in none.
			switch orientation {
			case 2, 8:
				sx = w - 1 - sx
			case 3, 7:
				sx, sy = w-1-sx, h-1-sy
			case 4, 6:
				sy = h - 1 - sy
			}
			copy(out.Pix[3*(y*out.W+x):][:3], img.Pix[3*(sy*w+sx):][:3])
		}
	}
	return out
}
