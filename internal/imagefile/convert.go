package imagefile

import (
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
)

// toRGB converts a decoded image like Pillow's convert("RGB"), which drops alpha.
// 8-bit grey becomes a plane. All work is done in the calling goroutine: a panic on a
// crafted image in a library's goroutine could not be recovered.
func (o Options) toRGB(m image.Image) (*RGB, error) {
	b := m.Bounds()
	out := &RGB{W: b.Dx(), H: b.Dy()}
	if m, ok := m.(*image.Gray); ok {
		out.plane = *borrow(out.W * out.H)
		for y := range out.H {
			copy(out.plane[y*out.W:(y+1)*out.W], m.Pix[y*m.Stride:])
		}
		return out, nil
	}
	if o.Window != nil || o.Probe {
		out.samples = o.deepSamples(m)
		if _, float := m.(*floatImage); float || out.samples != nil && o.Window != nil {
			return out, nil
		}
	}
	// Every byte is written below. Prepare returns the memory to the pool.
	out.Pix = *borrow(3 * out.W * out.H)
	switch m := m.(type) {
	case *image.Gray16:
		o.deepToRGB(out, m.Pix, m.Stride, 1)
	case *image.Paletted:
		p := paletteOf(m.Palette)
		eachRow(out, m.Pix, m.Stride, 1, func(d, s []byte) { copy(d, p[s[0]][:]) })
	case *image.NRGBA:
		eachRow(out, m.Pix, m.Stride, 4, func(d, s []byte) { d[0], d[1], d[2] = s[0], s[1], s[2] })
	case *image.NRGBA64:
		o.deepToRGB(out, m.Pix, m.Stride, 4)
	case *image.RGBA:
		eachRow(out, m.Pix, m.Stride, 4, func(d, s []byte) { unpremultiply(d, s[0], s[1], s[2], s[3]) })
	case *image.RGBA64:
		o.deepToRGB(out, m.Pix, m.Stride, 4)
		if !m.Opaque() {
			for y := range out.H {
				for x := range out.W {
					d := out.Pix[3*(y*out.W+x):][:3]
					unpremultiply(d, d[0], d[1], d[2], m.Pix[y*m.Stride+8*x+6])
				}
			}
		}
	case *image.CMYK:
		eachRow(out, m.Pix, m.Stride, 4, cmykToRGB)
	case *image.YCbCr:
		if err := ycbcrToRGB(out, m); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: unsupported pixel type %T", ErrImage, m)
	}
	return out, nil
}

// deepToRGB converts pixels of 16-bit samples, big-endian: grey for 1 sample per pixel,
// else RGB with alpha. It sets the largest sample of the image, alpha excepted.
func (o Options) deepToRGB(out *RGB, pix []byte, stride, samples int) {
	table := o.scale()
	var largest uint16
	value := func(s []byte) byte {
		v, flip := uint16(s[0])<<8|uint16(s[1]), byte(0)
		if o.inverted {
			v, flip = ^v, 0xff
		}
		largest = max(largest, v)
		if table == nil {
			return byte(v>>8) ^ flip
		}
		return table[v] ^ flip
	}
	if samples == 1 {
		eachRow(out, pix, stride, 2, func(d, s []byte) {
			v := value(s)
			d[0], d[1], d[2] = v, v, v
		})
	} else {
		eachRow(out, pix, stride, 2*samples, func(d, s []byte) {
			d[0], d[1], d[2] = value(s), value(s[2:]), value(s[4:])
		})
	}
	out.largest = max(int(largest), 1)
}

// repeat writes each value of a plane as red, green and blue. It converts four values
// to twelve bytes at a time.
func repeat(dst, plane []byte) {
	for len(plane) >= 4 && len(dst) >= 12 {
		a, b, c, d := uint64(plane[0]), uint64(plane[1]), uint64(plane[2]), uint32(plane[3])
		binary.LittleEndian.PutUint64(dst, a*0x010101|b*0x010101<<24|c*0x0101<<48)
		binary.LittleEndian.PutUint32(dst[8:], uint32(c)|d*0x01010100)
		plane, dst = plane[4:], dst[12:]
	}
	for i, v := range plane {
		d := dst[3*i : 3*i+3 : 3*i+3]
		d[0], d[1], d[2] = v, v, v
	}
}

// eachRow calls pixel for every pixel of the source, which has rows of stride bytes
// and pixels of size bytes.
func eachRow(out *RGB, pix []byte, stride, size int, pixel func(dst, src []byte)) {
	for y := range out.H {
		src := pix[y*stride : y*stride+out.W*size]
		dst := out.Pix[y*out.W*3 : (y+1)*out.W*3]
		for len(dst) >= 3 {
			pixel(dst[:3:3], src[:size:size])
			dst, src = dst[3:], src[size:]
		}
	}
}

// paletteOf returns the colours of a palette without alpha. Indexes outside the
// palette are black, as in Pillow.
func paletteOf(p color.Palette) (t [256][3]byte) {
	for i, c := range p[:min(len(p), len(t))] {
		switch c := c.(type) {
		case color.RGBA:
			t[i] = [3]byte{c.R, c.G, c.B}
		case color.NRGBA:
			t[i] = [3]byte{c.R, c.G, c.B}
		case color.RGBA64:
			t[i] = [3]byte{byte(c.R >> 8), byte(c.G >> 8), byte(c.B >> 8)}
		default:
			r, g, b, _ := c.RGBA()
			t[i] = [3]byte{byte(r >> 8), byte(g >> 8), byte(b >> 8)}
		}
	}
	return t
}

// unpremultiply converts TIFF's associated alpha like Pillow's unpacking of "RGBa":
// it rounds down, and alpha 0 is black.
func unpremultiply(d []byte, r, g, b, a byte) {
	switch a {
	case 255:
		d[0], d[1], d[2] = r, g, b
	case 0:
		d[0], d[1], d[2] = 0, 0, 0
	default:
		for i, v := range [3]byte{r, g, b} {
			d[i] = byte(min(255*int(v)/int(a), 255))
		}
	}
}

// cmykToRGB is Pillow's cmyk2rgb: (255-K)·(1-ink/255) for each ink.
func cmykToRGB(d, s []byte) {
	white := 255 - int(s[3])
	for i := range 3 {
		t := int(s[i])*white + 128
		d[i] = byte(max(white-(t>>8+t)>>8, 0))
	}
}
