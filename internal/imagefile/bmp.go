package imagefile

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Compressions of a BMP.
const (
	bmpRaw, bmpRLE8, bmpRLE4, bmpMasks = 0, 1, 2, 3
	bmpJPEG, bmpPNG                    = 4, 5
)

// bmpHeader is the header of a BMP.
type bmpHeader struct {
	w, h, bits, compression int
	topDown                 bool
	// masks select red, green and blue in pixels of 16 and 32 bits.
	masks   [3]uint32
	palette [256][3]byte
	pixels  []byte // from the first pixel on
	// odd reports whether pixels starts at an odd offset of the file. RLE aligns to
	// the file's 16-bit words.
	odd bool
}

// isBMP reports whether the bytes begin as a BMP: the two letters are not enough.
func isBMP(data []byte) bool {
	if len(data) < 18 || data[0] != 'B' || data[1] != 'M' {
		return false
	}
	switch binary.LittleEndian.Uint32(data[14:]) {
	case 12, 40, 52, 56, 64, 108, 124:
		return true
	}
	return false
}

// readBMP reads a BMP as Pillow does: the header's versions from OS/2 to 5, 1, 4, 8,
// 16, 24 and 32 bits per pixel, run-length encoding, and bit masks. Alpha is dropped.
// Unlike Pillow, it reads 2 bits per pixel and all contiguous bit masks.
func readBMP(data []byte, o Options) (*RGB, error) {
	d, err := readBMPHeader(data)
	if err != nil {
		return nil, err
	}
	if err := o.check(d.w, d.h); err != nil {
		return nil, err
	}
	if d.compression == bmpRLE8 || d.compression == bmpRLE4 {
		// A run encodes up to 255 pixels in 2 bytes.
		if err := plausible(len(data), int64(d.w)*int64(d.h), 128); err != nil {
			return nil, err
		}
		return d.expand(d.runs())
	}
	row := (d.w*d.bits + 31) / 32 * 4
	if int64(row)*int64(d.h) > int64(len(d.pixels)) {
		return nil, fmt.Errorf("%w: truncated BMP: %d bytes for %d×%d pixels", ErrImage, len(data), d.w, d.h)
	}
	out := &RGB{W: d.w, H: d.h, Pix: *borrow(3 * d.w * d.h)}
	pixel := d.pixel()
	for y := range d.h {
		dst, src := out.Pix[3*d.row(y)*d.w:][:3*d.w], d.pixels[y*row:(y+1)*row]
		if d.bits >= 8 {
			size := d.bits / 8
			for len(dst) > 0 {
				pixel(dst[:3:3], src[:size:size])
				dst, src = dst[3:], src[size:]
			}
			continue
		}
		mask := byte(1<<d.bits - 1)
		for x := range d.w {
			bit := x * d.bits
			copy(dst[3*x:3*x+3], d.palette[src[bit/8]>>(8-d.bits-bit%8)&mask][:])
		}
	}
	return out, nil
}

// row returns the image's row of the y-th row in the file.
func (d *bmpHeader) row(y int) int {
	if d.topDown {
		return y
	}
	return d.h - 1 - y
}

// readBMPHeader reads and checks the header and the palette.
func readBMPHeader(data []byte) (*bmpHeader, error) {
	le := binary.LittleEndian
	size := int(le.Uint32(data[14:]))
	if len(data) < 14+size {
		return nil, fmt.Errorf("%w: truncated BMP", ErrImage)
	}
	d, h := &bmpHeader{}, data[14:14+size]
	offset, end, entry, colours := int64(le.Uint32(data[10:])), int64(14+size), 4, int64(0)
	planes := 1
	if size == 12 {
		d.w, d.h, d.bits, entry = int(le.Uint16(h[4:])), int(le.Uint16(h[6:])), int(le.Uint16(h[10:])), 3
		planes = int(le.Uint16(h[8:]))
	} else {
		d.w, d.h = int(int32(le.Uint32(h[4:]))), int(int32(le.Uint32(h[8:])))
		planes, d.bits = int(le.Uint16(h[12:])), int(le.Uint16(h[14:]))
		d.compression = int(min(le.Uint32(h[16:]), 255))
		colours = int64(le.Uint32(h[32:]))
		if d.h < 0 {
			d.h, d.topDown = -d.h, true
		}
	}
	if planes > 1 {
		return nil, fmt.Errorf("%w: a BMP of %d planes", ErrImage, planes)
	}
	switch d.bits {
	case 16:
		d.masks = [3]uint32{0x7c00, 0x3e0, 0x1f}
	case 32:
		d.masks = [3]uint32{0xff0000, 0xff00, 0xff}
	case 1, 2, 4, 8, 24:
	default:
		return nil, fmt.Errorf("%w: a BMP of %d bits per pixel", ErrImage, d.bits)
	}
	switch d.compression {
	case bmpRaw:
	case bmpMasks:
		at := int64(14 + 40) // part of a long header, and after a short one
		if size == 40 {
			end += 12
		}
		if int64(len(data)) < at+12 {
			return nil, fmt.Errorf("%w: truncated BMP", ErrImage)
		}
		var m [3]uint32
		for i := range m {
			m[i] = le.Uint32(data[at+4*int64(i):])
		}
		if d.bits == 24 && m == [3]uint32{0xff0000, 0xff00, 0xff} || d.bits == 32 && m == [3]uint32{} {
			break
		}
		if d.bits != 16 && d.bits != 32 {
			return nil, fmt.Errorf("%w: a BMP of %d bits per pixel with bit masks", ErrImage, d.bits)
		}
		for _, v := range m {
			// A channel is up to 16 adjacent bits.
			if n := v >> bits.TrailingZeros32(v); v != 0 && (n&(n+1) != 0 || n > 0xffff) || d.bits == 16 && v > 0xffff {
				return nil, fmt.Errorf("%w: a BMP of unknown bit masks %#x", ErrImage, m)
			}
		}
		d.masks = m
	case bmpRLE8, bmpRLE4:
		if want := map[int]int{bmpRLE8: 8, bmpRLE4: 4}[d.compression]; d.bits != want {
			return nil, fmt.Errorf("%w: a run-length encoded BMP of %d bits per pixel, expected %d", ErrImage, d.bits, want)
		}
		if d.topDown {
			return nil, fmt.Errorf("%w: a run-length encoded BMP with rows from top to bottom", ErrImage)
		}
	case bmpJPEG, bmpPNG:
		return nil, fmt.Errorf("%w: a BMP that contains a JPEG or PNG is not read: save the image as JPEG or PNG", ErrImage)
	default:
		return nil, fmt.Errorf("%w: a BMP of compression %d is not read: save it without compression", ErrImage, d.compression)
	}
	if d.bits <= 8 {
		if colours == 0 {
			colours = 1 << d.bits
		}
		if colours > 1<<16 {
			return nil, fmt.Errorf("%w: a BMP of %d colours in its palette", ErrImage, colours)
		}
		palette := data[min(end, int64(len(data))):]
		for i := range int(min(colours, 256)) {
			if len(palette) < 3 {
				break // Indexes beyond the palette are black.
			}
			d.palette[i] = [3]byte{palette[2], palette[1], palette[0]}
			palette = palette[min(entry, len(palette)):]
		}
		// Like Pillow, ignore an offset that points at the palette.
		if offset == end {
			offset += int64(entry) * colours
		}
		end += int64(entry) * colours
	}
	if offset == 0 {
		offset = end
	}
	if offset > int64(len(data)) {
		return nil, fmt.Errorf("%w: truncated BMP", ErrImage)
	}
	d.pixels, d.odd = data[offset:], offset%2 != 0
	return d, nil
}

// pixel returns the function that converts a pixel of 8 bits or more.
func (d *bmpHeader) pixel() func(dst, src []byte) {
	le := binary.LittleEndian
	switch d.bits {
	case 8:
		return func(dst, src []byte) { copy(dst, d.palette[src[0]][:]) }
	case 24:
		return func(dst, src []byte) { dst[0], dst[1], dst[2] = src[2], src[1], src[0] }
	case 16:
		return func(dst, src []byte) { d.unmask(dst, uint32(le.Uint16(src))) }
	}
	if d.masks == [3]uint32{0xff0000, 0xff00, 0xff} {
		return func(dst, src []byte) { dst[0], dst[1], dst[2] = src[2], src[1], src[0] }
	}
	return func(dst, src []byte) { d.unmask(dst, le.Uint32(src)) }
}

// unmask scales the channels of a pixel to 8 bits. It rounds down, as Pillow does.
func (d *bmpHeader) unmask(dst []byte, v uint32) {
	for i, m := range d.masks {
		dst[i] = 0
		if m != 0 {
			shift := bits.TrailingZeros32(m)
			dst[i] = byte(((v & m) >> shift) * 255 / (m >> shift))
		}
	}
}

// runs decodes run-length encoding to an index per pixel, in the file's order of rows.
// Like Pillow's, the decoder clips a run at the end of the row, and an end of line that
// follows a complete row adds nothing. Pixels that are not encoded have index 0.
// It returns an error if the data ends before the image and without an end mark.
func (d *bmpHeader) runs() ([]byte, error) {
	pix := make([]byte, d.w*d.h)
	src, at, x := d.pixels, 0, 0
	put := func(v byte) {
		if at < len(pix) {
			pix[at] = v
			at++
		}
	}
	for at < len(pix) {
		if len(src) < 2 {
			return nil, fmt.Errorf("%w: truncated BMP", ErrImage)
		}
		n, v := int(src[0]), src[1]
		src = src[2:]
		switch {
		case n > 0:
			n = min(n, max(0, d.w-x))
			for i := range n {
				switch {
				case d.compression == bmpRLE8:
					put(v)
				case i%2 == 0:
					put(v >> 4)
				default:
					put(v & 15)
				}
			}
			x += n
		case v == 0: // end of line
			at = (at + d.w - 1) / d.w * d.w
			x = 0
		case v == 1: // end of the image
			return pix, nil
		case v == 2: // move right and up
			if len(src) < 2 {
				return nil, fmt.Errorf("%w: truncated BMP", ErrImage)
			}
			at = min(at+int(src[0])+int(src[1])*d.w, len(pix))
			x = at % d.w
			src = src[2:]
		default: // pixels as they are, padded to 16 bits
			count := min(len(pix)-at, int(v))
			size := count
			if d.compression == bmpRLE4 {
				size = (count + 1) / 2
			}
			if len(src) < size {
				return nil, fmt.Errorf("%w: truncated BMP", ErrImage)
			}
			for i := range count {
				switch {
				case d.compression == bmpRLE8:
					put(src[i])
				case i%2 == 0:
					put(src[i/2] >> 4)
				default:
					put(src[i/2] & 15)
				}
			}
			x += int(v)
			src = src[size:]
			if odd := (len(d.pixels)-len(src))%2 != 0; odd != d.odd && len(src) > 0 {
				src = src[1:]
			}
		}
	}
	return pix, nil
}

// expand converts an index per pixel to colours.
func (d *bmpHeader) expand(pix []byte, err error) (*RGB, error) {
	if err != nil {
		return nil, err
	}
	out := &RGB{W: d.w, H: d.h, Pix: *borrow(3 * d.w * d.h)}
	for y := range d.h {
		dst := out.Pix[3*d.row(y)*d.w:][:3*d.w]
		for x, v := range pix[y*d.w : (y+1)*d.w] {
			copy(dst[3*x:3*x+3], d.palette[v][:])
		}
	}
	return out, nil
}
