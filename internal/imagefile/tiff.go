package imagefile

import (
	"encoding/binary"
	"fmt"
	"image"
)

// TIFF tags and values for the checks, the orientation and the reader of this package.
const (
	tagSubfileType              = 254
	tagWidth, tagHeight         = 256, 257
	tagBitsPerSample            = 258
	tagCompression              = 259
	tagPhotometric              = 262
	tagFillOrder                = 266
	tagMake                     = 271
	tagStripOffsets             = 273
	tagOrientation              = 274
	tagSamplesPerPixel          = 277
	tagRowsPerStrip             = 278
	tagStripByteCounts          = 279
	tagPlanar                   = 284
	tagPredictor                = 317
	tagColorMap                 = 320
	tagTileWidth, tagTileHeight = 322, 323
	tagTileOffsets              = 324
	tagTileByteCounts           = 325
	tagSubIFDs                  = 330
	tagInkSet                   = 332
	tagExtraSamples             = 338
	tagSampleFormat             = 339
	tagJPEGTables               = 347
	tagXMP                      = 700
	tagDNGVersion               = 50706

	typeByte, typeASCII, typeShort, typeLong, typeLong8 = 1, 2, 3, 4, 16

	compressionMissing           = 0
	compressionNone              = 1
	compressionG3, compressionG4 = 3, 4
	compressionLZW               = 5
	compressionJPEG              = 7
	compressionDeflate           = 8
	compressionDeflateOld        = 32946
	compressionPackBits          = 32773

	whiteIsZero, blackIsZero, photometricRGB, photometricPalette, photometricInks, photometricYCbCr = 0, 1, 2, 3, 5, 6

	// maxTIFFBlocks bounds the strips or tiles. The decoder creates a decompressor for
	// each, even for a very small one.
	maxTIFFBlocks = 1 << 16
	// maxTIFFEntries bounds the tags of a directory. Classic TIFF has 16 bits for them.
	maxTIFFEntries = 1 << 12
)

// tiffCompressions are the names of compressions that are not read.
var tiffCompressions = map[int]string{
	2: "fax (CCITT RLE)", 6: "JPEG (old style)", 34661: "JBIG", 34712: "JPEG 2000",
	33003: "JPEG 2000", 33005: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL",
}

// tiffEntry is a tag's value: its type, the number of its values, and their bytes.
type tiffEntry struct {
	kind  int
	count int64
	value []byte
}

// tiffDirectory is a TIFF's first directory.
type tiffDirectory struct {
	order   binary.ByteOrder
	big     bool
	entries map[int]tiffEntry
}

// isTIFF reports whether the bytes begin as a TIFF or a BigTIFF.
func isTIFF(data []byte) bool {
	return len(data) >= 4 && (string(data[:4]) == "II*\x00" || string(data[:4]) == "MM\x00*" ||
		string(data[:4]) == "II+\x00" || string(data[:4]) == "MM\x00+")
}

// readTIFFDirectory reads the first directory of a file for which isTIFF holds. With an
// error, it also returns the entries before the damage.
func readTIFFDirectory(data []byte) (tiffDirectory, error) {
	d := tiffDirectory{order: binary.LittleEndian, entries: map[int]tiffEntry{}}
	truncated := fmt.Errorf("%w: truncated TIFF", ErrImage)
	if data[0] == 'M' {
		d.order = binary.BigEndian
	}
	d.big = d.order.Uint16(data[2:]) == 43
	var p, entries, size uint64
	inline := uint64(4)
	if d.big {
		if len(data) < 16 || d.order.Uint16(data[4:]) != 8 {
			return d, truncated
		}
		if p = d.order.Uint64(data[8:]); p > uint64(len(data)) || uint64(len(data))-p < 8 {
			return d, truncated
		}
		entries, p, size, inline = d.order.Uint64(data[p:]), p+8, 20, 8
	} else {
		if len(data) < 8 {
			return d, truncated
		}
		if p = uint64(d.order.Uint32(data[4:])); p+2 > uint64(len(data)) {
			return d, truncated
		}
		entries, p, size = uint64(d.order.Uint16(data[p:])), p+2, 12
	}
	if entries > maxTIFFEntries {
		return d, fmt.Errorf("%w: a TIFF directory of %d tags, at most %d are read", ErrImage, entries, maxTIFFEntries)
	}
	for range entries {
		if p+size > uint64(len(data)) {
			return d, truncated
		}
		e := data[p : p+size]
		p += size
		v := tiffEntry{kind: int(d.order.Uint16(e[2:]))}
		var count uint64
		if d.big {
			count, v.value = d.order.Uint64(e[4:]), e[12:]
		} else {
			count, v.value = uint64(d.order.Uint32(e[4:])), e[8:]
		}
		width := map[int]uint64{1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}[v.kind]
		if width == 0 || count > uint64(len(data)) {
			continue // fractions and unknown types: no needed tag has one
		}
		if n := width * count; n > inline {
			at := uint64(d.order.Uint32(v.value))
			if d.big {
				at = d.order.Uint64(v.value)
			}
			if at > uint64(len(data)) || uint64(len(data))-at < n {
				continue // the tag counts as missing
			}
			v.value = data[at : at+n]
		} else {
			v.value = v.value[:n]
		}
		v.count = int64(count)
		d.entries[int(d.order.Uint16(e))] = v
	}
	return d, nil
}

// at returns the i-th value of a tag. A missing value, one that is not an integer, and
// one above 2^62 are 0.
func (d tiffDirectory) at(tag int, i int64) int {
	e := d.entries[tag]
	if i >= e.count {
		return 0
	}
	switch e.kind {
	case typeByte:
		return int(e.value[i])
	case typeShort:
		return int(d.order.Uint16(e.value[2*i:]))
	case typeLong:
		return int(d.order.Uint32(e.value[4*i:]))
	case typeLong8:
		if v := d.order.Uint64(e.value[8*i:]); v < 1<<62 {
			return int(v)
		}
	}
	return 0
}

// first returns the first value of a tag.
func (d tiffDirectory) first(tag int) int { return d.at(tag, 0) }

// or returns the first value of a tag, or the default of a missing tag.
func (d tiffDirectory) or(tag, missing int) int {
	if d.entries[tag].count == 0 {
		return missing
	}
	return d.first(tag)
}

// size returns the width and height in pixels, 0 if they are missing or absurd.
func (d tiffDirectory) size() (w, h int) {
	return min(d.first(tagWidth), 1<<32), min(d.first(tagHeight), 1<<32)
}

// samples returns the number of samples per pixel.
func (d tiffDirectory) samples() int {
	return d.or(tagSamplesPerPixel, max(1, int(min(d.entries[tagBitsPerSample].count, 64))))
}

// float reports whether the samples are numbers of floating point.
func (d tiffDirectory) float() bool { return d.first(tagSampleFormat) == 3 }

// supported returns ErrImage, wrapped, for a kind of TIFF that is not read. It names
// the kind and the remedy. Floating-point samples are read only for a window.
func (d tiffDirectory) supported(window bool) error {
	for i := range min(d.entries[tagSampleFormat].count, 16) {
		switch d.at(tagSampleFormat, i) {
		case 2:
			return notRead("a TIFF of signed samples")
		case 3:
			if !window {
				return notRead("a TIFF of floating-point samples, without a window of sample values,")
			}
		case 5, 6:
			return notRead("a TIFF of complex samples")
		}
	}
	switch c := d.first(tagCompression); c {
	case compressionMissing, compressionNone, compressionG3, compressionG4, compressionLZW,
		compressionDeflate, compressionDeflateOld, compressionPackBits:
	case compressionJPEG:
		if d.first(tagPhotometric) == photometricYCbCr {
			return nil
		}
	default:
		name, ok := tiffCompressions[c]
		if !ok {
			name = fmt.Sprintf("unknown (%d)", c)
		}
		return fmt.Errorf("%w: a TIFF with %s compression is not read: save it with LZW or no compression", ErrImage, name)
	}
	switch p := d.first(tagPhotometric); p {
	case whiteIsZero, blackIsZero, photometricRGB, photometricPalette, photometricInks:
	case photometricYCbCr:
		return notRead("a TIFF of YCbCr colours")
	case 8, 9, 10:
		return notRead("a TIFF of Lab colours")
	case 32803:
		return notRead("a TIFF of a camera sensor's raw samples")
	case 32844, 32845:
		return notRead("a TIFF of logarithmic luminance")
	default:
		return notRead(fmt.Sprintf("a TIFF of photometric interpretation %d", p))
	}
	if b := d.or(tagBitsPerSample, 1); d.float() && (b != 32 || d.first(tagCompression) == compressionJPEG) {
		return notRead(fmt.Sprintf("a TIFF of floating-point samples of %d bits", b))
	} else if d.float() {
		return nil
	} else if b < 1 || b > 16 {
		return notRead(fmt.Sprintf("a TIFF of %d bits per sample", b))
	}
	return nil
}

// ownReader reports whether this package's reader must read the file, because the
// library's does not: BigTIFF, JPEG compression, separate planes, inks, 2 to 7 and 9 to 15 bits, and
// samples besides grey, a palette's index and RGB with alpha.
func (d tiffDirectory) ownReader() bool {
	bits, samples := d.or(tagBitsPerSample, 1), d.samples()
	grey := 1
	if d.first(tagPhotometric) == photometricRGB {
		grey = 3
	}
	alpha := d.first(tagExtraSamples)
	return d.big || d.float() || d.first(tagCompression) == compressionJPEG || d.or(tagPlanar, 1) == 2 && samples > 1 || d.first(tagPhotometric) == photometricInks ||
		bits != 1 && bits != 8 && bits != 16 ||
		samples != grey && !(grey == 3 && samples == 4 && (alpha == 1 || alpha == 2))
}

// orientation returns the orientation of the TIFF itself, or with xmp, if it has none,
// that of its XMP.
func (d tiffDirectory) orientation(xmp bool) int {
	if e := d.entries[tagXMP]; xmp && d.entries[tagOrientation].count == 0 && (e.kind == typeByte || e.kind == 7) {
		return xmpOrientation(e.value)
	}
	return d.first(tagOrientation)
}

// plausible refuses a TIFF whose pixels the file cannot encode, or whose strips or
// tiles would cost the decoder too much time or memory. length is the file's, in bytes.
func (d tiffDirectory) plausible(length int, c image.Config, lim Limits) error {
	w, h := c.Width, c.Height
	bw, bh := w, h
	if t := d.first(tagTileWidth); t > 0 {
		bw, bh = t, max(d.first(tagTileHeight), 1)
	} else if rows := d.first(tagRowsPerStrip); rows > 0 {
		bh = min(h, rows)
	}
	planes := int64(1)
	if d.or(tagPlanar, 1) == 2 {
		planes = int64(max(d.samples(), 1))
	}
	if bw > maxDimension+1024 || bh > maxDimension+1024 {
		return fmt.Errorf("%w: a TIFF of tiles of %d×%d pixels", ErrImage, bw, bh)
	}
	if n := int64((w+bw-1)/bw) * int64((h+bh-1)/bh) * planes; n > maxTIFFBlocks {
		return fmt.Errorf("%w: a TIFF of %d strips or tiles, at most %d are read", ErrImage, n, maxTIFFBlocks)
	}
	// The decoder decompresses a whole strip, with up to 8 bytes per pixel, even if it
	// needs a part of it.
	if area := int64(bw) * int64(bh); d.packed() && area > max(blankPixels, int64(lim.MaxPixels)/4) {
		return fmt.Errorf("%w: a compressed TIFF strip or tile of %d pixels, at most %d are read",
			ErrTooLarge, area, lim.MaxPixels/4)
	}
	bits := int64(max(d.first(tagBitsPerSample), 1)) * int64(max(d.samples(), 1))
	size := (int64(w)*bits + 7) / 8 * int64(h)
	switch d.first(tagCompression) {
	case compressionNone, compressionMissing:
		return plausible(length, size, 1)
	case compressionLZW:
		return plausible(length, size, lzwRatio)
	case compressionDeflate, compressionDeflateOld:
		return plausible(length, size, deflateRatio)
	case compressionPackBits:
		return plausible(length, size, packBitsRatio)
	case compressionJPEG:
		return plausible(length, int64(w)*int64(h), jpegPixelsPerByte)
	}
	return nil // fax compression can encode a row in one bit
}

// packed reports whether the pixels are compressed.
func (d tiffDirectory) packed() bool {
	c := d.first(tagCompression)
	return c != compressionNone && c != compressionMissing
}

// inverted reports whether the decoder swaps black and white. With fax compression it
// always takes 0 as white; libtiff follows the photometric interpretation.
func (d tiffDirectory) inverted() bool {
	c := d.first(tagCompression)
	return d.first(tagPhotometric) == blackIsZero && (c == compressionG3 || c == compressionG4)
}
