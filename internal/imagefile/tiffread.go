package imagefile

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"io"
	"math"
	"slices"

	"golang.org/x/image/tiff/lzw"
)

// readOwnTIFF reads the kinds of TIFF that the library does not, see
// tiffDirectory.ownReader. The result is an image.Gray, Gray16, Paletted, NRGBA,
// NRGBA64, CMYK or floatImage. Alpha and other extra samples are dropped; associated alpha is kept
// for RGB (image.RGBA, RGBA64).
func (d tiffDirectory) readOwnTIFF(data []byte, c image.Config, lim Limits) (image.Image, error) {
	r, err := d.newTIFFReader(data, c)
	if err != nil {
		return nil, err
	}
	w, h := c.Width, c.Height
	across, down := (w+r.bw-1)/r.bw, (h+r.bh-1)/r.bh
	planes, perBlock := 1, r.samples
	if r.planar {
		planes, perBlock = min(r.samples, r.keep), 1
	}
	for plane := range planes {
		for i := range across * down {
			x, y := i%across*r.bw, i/across*r.bh
			rows := r.bh
			if !r.tiled {
				rows = min(rows, h-y)
			}
			stride := (r.bw*perBlock*r.bits + 7) / 8
			if most := 8 * max(blankPixels, lim.MaxPixels/4); (d.packed() || r.predictor != 1) && stride*rows > most {
				return nil, fmt.Errorf("%w: a compressed TIFF strip or tile of %d bytes, at most %d are read", ErrTooLarge, stride*rows, most)
			}
			block, err := r.block(plane*across*down+i, stride*rows, image.Pt(r.bw, rows))
			if err != nil {
				return nil, err
			}
			if err := r.unpredict(block, stride, perBlock); err != nil {
				return nil, err
			}
			for row := range min(rows, h-y) {
				r.put(block[row*stride:(row+1)*stride], x, y+row, min(r.bw, w-x), plane)
			}
		}
	}
	return r.m, nil
}

// tiffReader reads the strips or tiles of a TIFF.
type tiffReader struct {
	d              tiffDirectory
	data           []byte
	bits, samples  int
	keep           int // samples of a pixel that are needed; the others are dropped
	planar, tiled  bool
	bw, bh         int // width and height of a block in pixels
	offset, length int // tags
	predictor      int
	buffer         []byte

	m   image.Image
	set func(at, sample int, v uint32) // of the pixel at the index at = y·w + x
	w   int
}

// newTIFFReader checks what the tags require of the reader, and makes the image.
func (d tiffDirectory) newTIFFReader(data []byte, c image.Config) (*tiffReader, error) {
	w, h := c.Width, c.Height
	r := &tiffReader{
		d: d, data: data, w: w, bits: d.or(tagBitsPerSample, 1), samples: d.samples(),
		planar: d.or(tagPlanar, 1) == 2, predictor: d.or(tagPredictor, 1),
		bw: w, bh: h, offset: tagStripOffsets, length: tagStripByteCounts,
	}
	if r.samples < 1 || r.samples > 64 {
		return nil, fmt.Errorf("%w: a TIFF of %d samples per pixel", ErrImage, r.samples)
	}
	for i := range min(d.entries[tagBitsPerSample].count, 64) {
		if d.at(tagBitsPerSample, i) != r.bits {
			return nil, notRead("a TIFF whose samples have different numbers of bits")
		}
	}
	switch d.first(tagCompression) {
	case compressionG3, compressionG4:
		return nil, notRead("a BigTIFF with fax compression")
	}
	if d.first(tagCompression) == compressionJPEG && r.bits != 8 {
		return nil, notRead(fmt.Sprintf("a TIFF with JPEG compression of %d bits per sample", r.bits))
	}
	if r.predictor != 1 && (r.predictor != 2 || r.bits != 8 && r.bits != 16) {
		return nil, notRead(fmt.Sprintf("a TIFF of predictor %d with %d bits per sample", r.predictor, r.bits))
	}
	if d.or(tagFillOrder, 1) != 1 && r.bits < 8 {
		return nil, notRead("a TIFF of reversed bits")
	}
	if t := d.first(tagTileWidth); t > 0 {
		r.tiled, r.bw, r.bh = true, t, max(d.first(tagTileHeight), 1)
		r.offset, r.length = tagTileOffsets, tagTileByteCounts
		if r.bw < 8 || r.bh < 8 {
			return nil, fmt.Errorf("%w: a TIFF of tiles of %d×%d pixels", ErrImage, r.bw, r.bh)
		}
		if r.bw > max(1024, w+16) || r.bh > max(1024, h+16) {
			return nil, fmt.Errorf("%w: a TIFF of %d×%d pixels in tiles of %d×%d", ErrImage, w, h, r.bw, r.bh)
		}
	} else if rows := d.first(tagRowsPerStrip); rows > 0 {
		r.bh = min(h, rows)
	}
	return r, r.newImage(w, h)
}

// newImage makes the image and the function that sets a sample.
func (r *tiffReader) newImage(w, h int) error {
	d, be, all := r.d, binary.BigEndian, image.Rect(0, 0, w, h)
	most := uint32(1)<<r.bits - 1
	switch p := d.first(tagPhotometric); {
	case d.float() && p == blackIsZero && r.samples == 1, d.float() && p == photometricRGB && r.samples == 3:
		r.keep = r.samples
		m := &floatImage{rect: all, channels: r.samples, pix: make([]float32, w*h*r.samples)}
		r.m, r.set = m, func(at, s int, v uint32) { m.pix[m.channels*at+s] = math.Float32frombits(v) }
	case d.float():
		return notRead(fmt.Sprintf("a TIFF of photometric interpretation %d with %d floating-point samples", p, r.samples))
	case (p == photometricRGB || p == photometricYCbCr) && r.samples >= 3 && (r.bits == 8 || r.bits == 16):
		r.keep = 3
		associated := r.samples > 3 && d.first(tagExtraSamples) == 1
		if associated {
			r.keep = 4
		}
		switch {
		case r.bits == 8 && associated:
			m := image.NewRGBA(all)
			r.m, r.set = m, func(at, s int, v uint32) { m.Pix[4*at+s] = byte(v) }
		case r.bits == 8:
			m := image.NewNRGBA(all)
			r.m, r.set = m, func(at, s int, v uint32) { m.Pix[4*at+s] = byte(v) }
		case associated:
			m := image.NewRGBA64(all)
			r.m, r.set = m, func(at, s int, v uint32) { be.PutUint16(m.Pix[8*at+2*s:], uint16(v)) }
		default:
			m := image.NewNRGBA64(all)
			r.m, r.set = m, func(at, s int, v uint32) { be.PutUint16(m.Pix[8*at+2*s:], uint16(v)) }
		}
	case p == photometricInks && r.samples >= 4 && (r.bits == 8 || r.bits == 16):
		if d.or(tagInkSet, 1) != 1 {
			return notRead("a TIFF of other inks than cyan, magenta, yellow and black")
		}
		m := image.NewCMYK(all)
		r.m, r.keep = m, 4
		r.set = func(at, s int, v uint32) { m.Pix[4*at+s] = byte(v >> (r.bits - 8)) }
	case p == photometricPalette && r.bits <= 8:
		n := d.entries[tagColorMap].count / 3
		if n < 1 || n > 256 {
			return fmt.Errorf("%w: a TIFF palette of %d colours", ErrImage, n)
		}
		palette := make(color.Palette, n)
		for i := range n {
			channel := func(c int64) uint16 { return uint16(d.at(tagColorMap, i+c*n)) }
			palette[i] = color.RGBA64{R: channel(0), G: channel(1), B: channel(2), A: 0xffff}
		}
		m := image.NewPaletted(all, palette)
		r.m, r.keep = m, 1
		r.set = func(at, _ int, v uint32) { m.Pix[at] = byte(v) }
	case (p == blackIsZero || p == whiteIsZero) && r.bits <= 8:
		m := image.NewGray(all)
		r.m, r.keep = m, 1
		r.set = func(at, _ int, v uint32) {
			if p == whiteIsZero {
				v = most - v
			}
			m.Pix[at] = byte(v * 255 / most)
		}
	case p == blackIsZero || p == whiteIsZero:
		m := image.NewGray16(all)
		r.m, r.keep = m, 1
		r.set = func(at, _ int, v uint32) {
			if p == whiteIsZero {
				v = 0xffff - v // as the library does, which toRGB undoes
			}
			be.PutUint16(m.Pix[2*at:], uint16(v))
		}
	default:
		return notRead(fmt.Sprintf("a TIFF of photometric interpretation %d with %d samples of %d bits", p, r.samples, r.bits))
	}
	return nil
}

// block returns the decompressed bytes of a strip or tile, size bytes. The slice is
// valid until the next call. pixels is its width and height.
func (r *tiffReader) block(i, size int, pixels image.Point) ([]byte, error) {
	at, n := r.d.at(r.offset, int64(i)), r.d.at(r.length, int64(i))
	if at < 1 || n < 0 || at > len(r.data) || n > len(r.data)-at {
		return nil, fmt.Errorf("%w: truncated TIFF", ErrImage)
	}
	packed := r.data[at : at+n]
	if r.d.first(tagCompression) == compressionJPEG {
		return r.jpegBlock(packed, size, pixels)
	}
	if !r.d.packed() && r.predictor == 1 && n >= size {
		return packed[:size], nil
	}
	if cap(r.buffer) < size {
		r.buffer = make([]byte, size)
	}
	block := r.buffer[:size]
	var err error
	switch r.d.first(tagCompression) {
	case compressionLZW:
		z := lzw.NewReader(bytes.NewReader(packed), lzw.MSB, 8)
		_, err = io.ReadFull(z, block)
		_ = z.Close()
	case compressionDeflate, compressionDeflateOld:
		var z io.ReadCloser
		if z, err = zlib.NewReader(bytes.NewReader(packed)); err == nil {
			_, err = io.ReadFull(z, block)
			_ = z.Close()
		}
	case compressionPackBits:
		err = unpackBits(block, packed)
	default:
		if copy(block, packed) < size {
			err = io.ErrUnexpectedEOF
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: damaged TIFF: strip or tile %d: %w", ErrImage, i, err)
	}
	return block, nil
}

// maxJPEGTables bounds the tables that the JPEGs of a TIFF share, in bytes: they are
// read again for each strip or tile. Usual ones have 600.
const maxJPEGTables = 16 << 10

// jpegBlock returns the samples of a strip or tile that is a JPEG, whose tables can be
// in a tag.
func (r *tiffReader) jpegBlock(packed []byte, size int, pixels image.Point) ([]byte, error) {
	tables := r.d.entries[tagJPEGTables].value
	if len(tables) > maxJPEGTables || len(packed) < 2 {
		return nil, fmt.Errorf("%w: damaged TIFF: its JPEG tables have %d bytes", ErrImage, len(tables))
	}
	if len(tables) >= 4 { // without the marks of their beginning and end
		packed = slices.Concat(packed[:2], tables[2:len(tables)-2], packed[2:])
	}
	colours := jpegYCC
	if r.d.first(tagPhotometric) != photometricYCbCr {
		colours = jpegRGB
	}
	img, err := readJPEGAs(withHuffmanTables(packed), Limits{MaxPixels: pixels.X * (pixels.Y + 16)}, colours)
	if err != nil {
		return nil, err
	}
	// The JPEG of the last strip can be as high as the others.
	if img.W != pixels.X || img.H < pixels.Y {
		return nil, fmt.Errorf("%w: damaged TIFF: a JPEG of %d×%d pixels in a block of %d×%d", ErrImage, img.W, img.H, pixels.X, pixels.Y)
	}
	if size == 3*pixels.X*pixels.Y {
		return img.Pix[:size], nil
	}
	grey := make([]byte, pixels.X*pixels.Y)
	if len(grey) != size {
		return nil, notRead(fmt.Sprintf("a TIFF with JPEG compression of %d samples per pixel", r.samples))
	}
	for i := range grey {
		grey[i] = img.Pix[3*i]
	}
	return grey, nil
}

// unpackBits fills dst with the decompressed bytes of src.
func unpackBits(dst, src []byte) error {
	for len(dst) > 0 {
		if len(src) < 2 {
			return io.ErrUnexpectedEOF
		}
		n := int(int8(src[0]))
		switch {
		case n >= 0:
			if len(src) < 2+n {
				return io.ErrUnexpectedEOF
			}
			dst = dst[copy(dst, src[1:2+n]):]
			src = src[2+n:]
		case n == -128:
			src = src[1:]
		default:
			run := min(1-n, len(dst))
			for i := range run {
				dst[i] = src[1]
			}
			dst, src = dst[run:], src[2:]
		}
	}
	return nil
}

// unpredict adds the preceding pixel to each, if the TIFF stores differences.
func (r *tiffReader) unpredict(block []byte, stride, samples int) error {
	if r.predictor != 2 {
		return nil
	}
	if stride == 0 {
		return errors.New("a TIFF block without samples")
	}
	for ; len(block) >= stride; block = block[stride:] {
		row := block[:stride]
		if r.bits == 8 {
			for i := samples; i < len(row); i++ {
				row[i] += row[i-samples]
			}
			continue
		}
		for i := 2 * samples; i+2 <= len(row); i += 2 {
			r.d.order.PutUint16(row[i:], r.d.order.Uint16(row[i:])+r.d.order.Uint16(row[i-2*samples:]))
		}
	}
	return nil
}

// put sets n pixels of a row from x, y on.
func (r *tiffReader) put(row []byte, x, y, n, plane int) {
	at := y*r.w + x
	perPixel := r.samples
	if r.planar {
		perPixel = 1
	}
	for i := range n {
		for s := range min(perPixel, r.keep) {
			var v uint32
			switch k := i*perPixel + s; r.bits {
			case 8:
				v = uint32(row[k])
			case 16:
				v = uint32(r.d.order.Uint16(row[2*k:]))
			case 32:
				v = r.d.order.Uint32(row[4*k:])
			default:
				v = bitsAt(row, k*r.bits, r.bits)
			}
			r.set(at+i, plane+s, v)
		}
	}
}

// bitsAt returns n bits, at most 16, from the given bit on. The first bit of a byte is
// its highest.
func bitsAt(b []byte, bit, n int) (v uint32) {
	for i := bit / 8; i <= (bit+n-1)/8; i++ {
		v = v<<8 | uint32(b[i])
	}
	return v >> (7 - (bit+n-1)%8) & (1<<n - 1)
}
