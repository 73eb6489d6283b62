package imagefile

import (
	"encoding/binary"
	"fmt"
	"image"
)

// TIFF tags and values for the checks and the orientation.
const (
	tagWidth, tagHeight           = 256, 257
	tagBitsPerSample              = 258
	tagCompression                = 259
	tagPhotometric                = 262
	tagOrientation                = 274
	tagRowsPerStrip               = 278
	tagTileWidth, tagTileHeight   = 322, 323
	typeByte, typeShort, typeLong = 1, 3, 4
	compressionMissing            = 0
	compressionNone               = 1
	compressionG3, compressionG4  = 3, 4
	compressionLZW                = 5
	compressionDeflate            = 8
	compressionDeflateOld         = 32946
	compressionPackBits           = 32773
	blackIsZero                   = 1

	// maxTIFFBlocks bounds the strips or tiles. The decoder creates a decompressor for
	// each, even for a very small one.
	maxTIFFBlocks = 1 << 16
)

// tiffDirectory holds the needed tags of a TIFF's first directory. A missing tag is 0.
type tiffDirectory struct {
	compression, photometric, orientation              int
	rowsPerStrip, tileWidth, tileHeight, bits, samples int
}

// readTIFFDirectory reads the first directory. The decoder reads and validates it again.
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
			if count > 2 { // the values do not fit into the entry, which holds their offset
				d.bits = 8
			}
		}
	}
	return d, nil
}

// plausible refuses a TIFF whose pixels the file cannot encode, or whose strips or
// tiles would cost the decoder too much time or memory. length is the file's, in bytes.
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
	// The decoder decompresses a whole strip, with up to 8 bytes per pixel, even if it
	// needs a part of it.
	if area := int64(bw) * int64(bh); d.packed() && area > max(blankPixels, int64(lim.MaxPixels)/4) {
		return fmt.Errorf("%w: a compressed TIFF strip or tile of %d pixels, at most %d are read",
			ErrTooLarge, area, lim.MaxPixels/4)
	}
	bits := int64(max(d.bits, 1)) * int64(max(d.samples, 1))
	size := (int64(w)*bits + 7) / 8 * int64(h)
	switch d.compression {
	case compressionNone, compressionMissing:
		return plausible(length, size, 1)
	case compressionLZW:
		return plausible(length, size, lzwRatio)
	case compressionDeflate, compressionDeflateOld:
		return plausible(length, size, deflateRatio)
	case compressionPackBits:
		return plausible(length, size, packBitsRatio)
	}
	return nil // fax compression can encode a row in one bit
}

// packed reports whether the pixels are compressed.
func (d tiffDirectory) packed() bool {
	return d.compression != compressionNone && d.compression != compressionMissing
}

// inverted reports whether the decoder swaps black and white. With fax compression it
// always takes 0 as white; libtiff follows the photometric interpretation.
func (d tiffDirectory) inverted() bool {
	return d.photometric == blackIsZero && (d.compression == compressionG3 || d.compression == compressionG4)
}

// oriented applies a TIFF orientation from 1 to 8. Other values return the image
// unchanged. Pillow applies the orientation of TIFF only.
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
			// After the transposition, the source is mirrored in no axis, one or both.
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
