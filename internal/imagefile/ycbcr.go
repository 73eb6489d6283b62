package imagefile

import (
	"fmt"
	"image"
)

// The conversion of a JPEG's colours is that of libjpeg-turbo and Pillow: chroma of half
// the resolution is interpolated with a triangle filter ("fancy upsampling"), chroma of
// a quarter is repeated, and the colours are converted in fixed point. Go's conversion
// always repeats chroma, which differs by up to 100 of 255 at coloured edges.

// Tables of JFIF's conversion: the values that Cr adds to red and Cb to blue, rounded,
// and those that both add to green, with 16 fractional bits.
var crRed, cbBlue, crGreen, cbGreen = yccTables()

func yccTables() (r, b, gr, gb [256]int32) {
	const half = 1 << 15
	fix := func(v float64) int32 { return int32(v*(1<<16) + 0.5) }
	for i := range 256 {
		x := int32(i) - 128
		r[i] = (fix(1.40200)*x + half) >> 16
		b[i] = (fix(1.77200)*x + half) >> 16
		gr[i] = -fix(0.71414) * x
		gb[i] = -fix(0.34414)*x + half
	}
	return r, b, gr, gb
}

// chroma is a colour plane of a JPEG without the decoder's padding to whole blocks.
// libjpeg repeats the last sample instead.
type chroma struct {
	pix          []byte
	stride, w, h int
	xStep, yStep int // pixels per sample
	fancyX       bool
	sums         []int32 // a row, weighted with the row next to it
}

func (c *chroma) row(y int) []byte {
	y = min(max(y, 0), c.h-1)
	return c.pix[y*c.stride : y*c.stride+c.w]
}

// ycbcrToRGB writes the colours of a decoded JPEG to out.
func ycbcrToRGB(out *RGB, m *image.YCbCr) error {
	row, err := ycbcrRows(m)
	if err != nil {
		return err
	}
	for y := range out.H {
		row(out.Pix[3*y*out.W:3*(y+1)*out.W], y)
	}
	return nil
}

// ycbcrRows returns a function that writes the colours of row y of a decoded JPEG. It must
// not be used concurrently.
func ycbcrRows(m *image.YCbCr) (func(dst []byte, y int), error) {
	width, height := m.Rect.Dx(), m.Rect.Dy()
	var sx, sy int
	switch m.SubsampleRatio {
	case image.YCbCrSubsampleRatio444:
		sx, sy = 1, 1
	case image.YCbCrSubsampleRatio422:
		sx, sy = 2, 1
	case image.YCbCrSubsampleRatio420:
		sx, sy = 2, 2
	case image.YCbCrSubsampleRatio440:
		sx, sy = 1, 2
	case image.YCbCrSubsampleRatio411:
		sx, sy = 4, 1
	case image.YCbCrSubsampleRatio410:
		sx, sy = 4, 2
	default:
		return nil, fmt.Errorf("%w: a JPEG of unknown chroma subsampling %v", ErrImage, m.SubsampleRatio)
	}
	cw, ch := (width+sx-1)/sx, (height+sy-1)/sy
	plane := func(pix []byte) *chroma {
		return &chroma{
			pix: pix, stride: m.CStride, w: cw, h: ch, xStep: sx, yStep: sy,
			// libjpeg does not interpolate planes of one or two columns.
			fancyX: sx == 2 && cw > 2,
			sums:   make([]int32, cw),
		}
	}
	cb, cr := plane(m.Cb), plane(m.Cr)
	// Interpolated rows have whole steps, so they can be longer than the image's.
	cbRow, crRow := make([]byte, cw*sx), make([]byte, cw*sx)
	return func(dst []byte, y int) {
		b, r := cb.row(y), cr.row(y)
		if sx != 1 || sy != 1 {
			cb.upsample(cbRow, y)
			cr.upsample(crRow, y)
			b, r = cbRow, crRow
		}
		yccRow(dst, m.Y[y*m.YStride:y*m.YStride+width], b, r)
	}, nil
}

// yccRow converts one row of full-size planes.
func yccRow(dst, luma, cb, cr []byte) {
	cb, cr = cb[:len(luma)], cr[:len(luma)]
	for x, l := range luma {
		y, u, v := int32(l), cb[x], cr[x]
		d := dst[3*x : 3*x+3 : 3*x+3]
		d[0] = clamp8(y + crRed[v])
		d[1] = clamp8(y + (cbGreen[u]+crGreen[v])>>16)
		d[2] = clamp8(y + cbBlue[u])
	}
}

func clamp8(v int32) byte {
	if uint32(v) <= 255 {
		return byte(v)
	}
	if v < 0 {
		return 0
	}
	return 255
}

// upsample writes row y of the plane at the image's resolution: with libjpeg-turbo's
// h2v2, h2v1 and h1v2 "fancy" upsampling, whose alternating biases avoid a drift of the
// rounding, or by repetition.
func (c *chroma) upsample(dst []byte, y int) {
	near := c.row(y / c.yStep)
	switch {
	case c.fancyX && c.yStep == 2:
		far := c.row(y/2 + y%2*2 - 1)
		for i, v := range near {
			c.sums[i] = 3*int32(v) + int32(far[i])
		}
		widen(dst, c.sums, 8, 7, 4)
	case c.fancyX && c.yStep == 1:
		for i, v := range near {
			c.sums[i] = int32(v)
		}
		widen(dst, c.sums, 1, 2, 2)
	case c.xStep == 1 && c.yStep == 2:
		far := c.row(y/2 + y%2*2 - 1)
		bias := int32(1 + y%2)
		for i, v := range near {
			dst[i] = byte((3*int32(v) + int32(far[i]) + bias) >> 2)
		}
	default:
		for i, v := range near {
			for j := range c.xStep {
				dst[i*c.xStep+j] = v
			}
		}
	}
}

// widen doubles the width of a row: each output is 3/4 of its sample and 1/4 of the
// nearer neighbour, with one bias for left outputs and one for right outputs. The first
// and the last output equal their sample.
func widen(dst []byte, s []int32, left, right int32, shift uint) {
	n := len(s)
	for i, v := range s {
		before, after := v, v
		if i > 0 {
			before = s[i-1]
		}
		if i < n-1 {
			after = s[i+1]
		}
		d := dst[2*i : 2*i+2 : 2*i+2]
		d[0] = byte((3*v + before + left) >> shift)
		d[1] = byte((3*v + after + right) >> shift)
	}
}
