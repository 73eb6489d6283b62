package imagefile

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/deepmed/anomaly/models"
)

// precisionBits is the number of fractional bits of a coefficient, Pillow's
// PRECISION_BITS: 32 bits minus 8 for the pixel and 2 against overflow.
const precisionBits = 32 - 8 - 2

// maxPooledBytes is the largest buffer that the pool keeps: 1024 rows of 4096 pixels.
const maxPooledBytes = 12 << 20

// weights are the triangle filter's coefficients for one direction.
type weights struct {
	// windows holds the inputs of every output.
	windows []window
	coeffs  []uint32
}

// window is the n inputs from first on. Their coefficients start at coeff in
// weights.coeffs.
type window struct{ first, n, coeff int }

// newWeights is Pillow's precompute_coeffs and normalize_coeffs_8bpc for the bilinear
// filter.
func newWeights(in, out int) weights {
	w := weights{windows: make([]window, out)}
	support := max(float64(in)/float64(out), 1)
	w.coeffs = make([]uint32, 0, min(out*(2*int(math.Ceil(support))+1), 2*in+4*out))
	triangles(in, out, func(i, first int, norm []float64) {
		w.windows[i] = window{first: first, n: len(norm), coeff: len(w.coeffs)}
		for _, v := range norm {
			// No value is negative, so adding 0.5 rounds.
			w.coeffs = append(w.coeffs, uint32(0.5+float64(v*(1<<precisionBits))))
		}
	})
	return w
}

// of returns the first input and the coefficients of output i.
func (w weights) of(i int) (int, []uint32) {
	win := w.windows[i]
	return win.first, w.coeffs[win.coeff : win.coeff+win.n]
}

// span returns the first input of all windows and the end of the last one.
func (w weights) span() (first, end int) {
	last := w.windows[len(w.windows)-1]
	return w.windows[0].first, last.first + last.n
}

// Resize returns the image at w×h pixels. The result has the same bits as Pillow's
// Image.BILINEAR: a triangle filter whose support grows with the reduction,
// coefficients with 22 fractional bits, two passes with 8 bits between them, and no
// pass for a dimension that does not change. The order of the passes is that of
// Pillow 13, see verticalFirst. The result shares no memory with img. Resize panics if
// w or h is below 1.
func (img *RGB) Resize(w, h int) *RGB {
	if w < 1 || h < 1 {
		panic(fmt.Sprintf("imagefile: resize to %d×%d pixels", w, h))
	}
	out := newRGB(w, h)
	img.resizeTo(out.Pix, w, h)
	return out
}

// resizeTo writes the pixels of Resize to pix.
func (img *RGB) resizeTo(pix []byte, w, h int) {
	switch {
	case w == img.W && h == img.H && img.plane == nil:
		copy(pix, img.Pix)
	case w == img.W && h == img.H:
		repeat(pix, img.plane)
	case img.plane != nil: // a third of the operations
		to := borrow(w * h)
		img.resize(*to, img.plane, w, h, 1, horizontalGrey)
		repeat(pix, *to)
		giveBack(to)
	default:
		img.resize(pix, img.Pix, w, h, channels, horizontal)
	}
}

// channels is the number of channels of an RGB image.
const channels = 3

// resize resizes src, with the image's size and the given number of samples per pixel,
// to w×h pixels. At least one dimension must change. The function row resizes rows.
func (img *RGB) resize(dst, src []byte, w, h, samples int, row func(dst, src []byte, in, out int, w weights)) {
	switch {
	case h == img.H:
		row(dst, src, img.W, w, newWeights(img.W, w))
	case w == img.W:
		vertical(dst, src, samples*w, newWeights(img.H, h))
	case img.verticalFirst(w, h):
		buf := borrow(samples * img.W * h)
		vertical(*buf, src, samples*img.W, newWeights(img.H, h))
		row(dst, *buf, img.W, w, newWeights(img.W, w))
		giveBack(buf)
	default:
		rows := newWeights(img.H, h)
		first, end := rows.span()
		for i := range rows.windows {
			rows.windows[i].first -= first
		}
		buf := borrow(samples * w * (end - first))
		row(*buf, src[samples*img.W*first:samples*img.W*end], img.W, w, newWeights(img.W, w))
		vertical(dst, *buf, samples*w, rows)
		giveBack(buf)
	}
}

// verticalFirst reports whether Pillow 13 resizes the height before the width: if the
// height loses more than twice as many pixels as the width. Earlier versions always
// resize the width first. The order changes results by at most 1 of 255.
func (img *RGB) verticalFirst(w, h int) bool {
	return verticalFirst(models.Size{W: img.W, H: img.H}, models.Size{W: w, H: h})
}

func verticalFirst(from, to models.Size) bool {
	return to.H < from.H && from.H-to.H > 2*(from.W-to.W)
}

// frameTo writes the part of the image that the frame keeps, resized, to the pixels of the
// frame's input. The others become black.
func (img *RGB) frameTo(pix []byte, f models.Frame) {
	from, to := f.From.Size(), f.To.Size()
	if from.W != img.W || from.H != img.H {
		img = img.cropped(f.From)
		defer giveBack(&img.Pix)
		defer giveBack(&img.plane)
	}
	if to == f.Input {
		img.resizeTo(pix, to.W, to.H)
		return
	}
	buf := borrow(channels * to.Area())
	img.resizeTo(*buf, to.W, to.H)
	clear(pix)
	for y := range to.H {
		copy(pix[channels*((f.To.Y0+y)*f.Input.W+f.To.X0):], (*buf)[channels*y*to.W:channels*(y+1)*to.W])
	}
	giveBack(buf)
}

// cropped returns a copy of a box of the image.
func (img *RGB) cropped(b models.Box) *RGB {
	size := b.Size()
	out := &RGB{W: size.W, H: size.H}
	rows := func(src []byte, n int) []byte {
		dst := *borrow(n * size.Area())
		for y := range size.H {
			copy(dst[n*y*size.W:n*(y+1)*size.W], src[n*((b.Y0+y)*img.W+b.X0):])
		}
		return dst
	}
	if img.plane != nil {
		out.plane = rows(img.plane, 1)
	} else {
		out.Pix = rows(img.Pix, channels)
	}
	return out
}

// pool holds buffers of images.
var pool = sync.Pool{New: func() any { return new([]byte) }}

// borrow returns a buffer of n bytes with undefined content.
func borrow(n int) *[]byte {
	buf := pool.Get().(*[]byte)
	if cap(*buf) < n {
		*buf = make([]byte, n)
	}
	*buf = (*buf)[:n]
	return buf
}

// giveBack puts a buffer into the pool unless it is nil or too large.
func giveBack(buf *[]byte) {
	if *buf != nil && cap(*buf) <= maxPooledBytes {
		pool.Put(buf)
	}
}

// half is added to a sum of products to round it to the nearest value.
const half = 1 << (precisionBits - 1)

// clipSum drops the fractional bits. The sum of rounded coefficients can be slightly
// above 1, so the result for white needs an upper bound.
func clipSum(v uint32) byte { return byte(min(v>>precisionBits, 255)) }

// A 64-bit word holds two 32-bit sums, so that one multiplication computes two samples.
// No sum overflows into the other: the coefficients add up to about 2^22, times 255.
// lanes masks the lowest byte of both halves, round is half in both.
const (
	lanes = 0x000000ff_000000ff
	round = half<<32 | half
)

// horizontal resizes every row of src from in to out pixels. Each word holds the
// samples of two rows.
func horizontal(dst, src []byte, in, out int, w weights) {
	pairs := make([]uint64, 3*in)
	for len(src) > 0 {
		upper, lower := src[:3*in], src[:3*in]
		upperOut, lowerOut := dst[:3*out], dst[:3*out]
		src, dst = src[3*in:], dst[3*out:]
		if len(src) > 0 { // else an odd last row is paired with itself
			lower, lowerOut = src[:3*in], dst[:3*out]
			src, dst = src[3*in:], dst[3*out:]
		}
		pair(pairs, upper, lower)
		for i, win := range w.windows {
			k := w.coeffs[win.coeff : win.coeff+win.n]
			p := pairs[3*win.first : 3*(win.first+win.n)]
			var r, g, b uint64 = round, round, round
			for j, c := range k {
				if q := 3 * j; q+2 < len(p) {
					c := uint64(c)
					r += p[q] * c
					g += p[q+1] * c
					b += p[q+2] * c
				}
			}
			d := upperOut[3*i : 3*i+3 : 3*i+3]
			d[0], d[1], d[2] = clipSum(uint32(r)), clipSum(uint32(g)), clipSum(uint32(b))
			d = lowerOut[3*i : 3*i+3 : 3*i+3]
			d[0], d[1], d[2] = clipSum(uint32(r>>32)), clipSum(uint32(g>>32)), clipSum(uint32(b>>32))
		}
	}
}

// horizontalGrey is horizontal for one sample per pixel.
func horizontalGrey(dst, src []byte, in, out int, w weights) {
	pairs := make([]uint64, in)
	for len(src) > 0 {
		upper, lower := src[:in], src[:in]
		upperOut, lowerOut := dst[:out], dst[:out]
		src, dst = src[in:], dst[out:]
		if len(src) > 0 {
			lower, lowerOut = src[:in], dst[:out]
			src, dst = src[in:], dst[out:]
		}
		pair(pairs, upper, lower)
		for i, win := range w.windows {
			k := w.coeffs[win.coeff : win.coeff+win.n]
			p := pairs[win.first : win.first+win.n]
			var s uint64 = round
			for j, c := range k {
				s += p[j] * uint64(c)
			}
			upperOut[i], lowerOut[i] = clipSum(uint32(s)), clipSum(uint32(s>>32))
		}
	}
}

// pair writes the samples of two rows to the halves of each word.
func pair(dst []uint64, upper, lower []byte) {
	for len(dst) >= 4 && len(upper) >= 4 && len(lower) >= 4 {
		v := uint64(binary.LittleEndian.Uint32(upper)) | uint64(binary.LittleEndian.Uint32(lower))<<32
		dst[0], dst[1], dst[2], dst[3] = v&lanes, v>>8&lanes, v>>16&lanes, v>>24&lanes
		dst, upper, lower = dst[4:], upper[4:], lower[4:]
	}
	for i := range dst {
		dst[i] = uint64(upper[i]) | uint64(lower[i])<<32
	}
}

// vertical resizes the columns of src, which has rows of stride bytes. It computes
// eight columns at a time, two in each word.
func vertical(dst, src []byte, stride int, w weights) {
	for i := range w.windows {
		first, k := w.of(i)
		row := dst[i*stride : (i+1)*stride]
		column := src[first*stride:]
		x := 0
		for ; x+8 <= stride; x += 8 {
			var s0, s1, s2, s3 uint64 = round, round, round, round
			at := x
			for _, c := range k {
				v := binary.LittleEndian.Uint64(column[at:])
				c := uint64(c)
				s0 += (v & lanes) * c
				s1 += (v >> 8 & lanes) * c
				s2 += (v >> 16 & lanes) * c
				s3 += (v >> 24 & lanes) * c
				at += stride
			}
			d := row[x : x+8 : x+8]
			d[0], d[4] = clipSum(uint32(s0)), clipSum(uint32(s0>>32))
			d[1], d[5] = clipSum(uint32(s1)), clipSum(uint32(s1>>32))
			d[2], d[6] = clipSum(uint32(s2)), clipSum(uint32(s2>>32))
			d[3], d[7] = clipSum(uint32(s3)), clipSum(uint32(s3>>32))
		}
		for ; x < stride; x++ {
			var s uint32 = half
			for j, c := range k {
				s += uint32(column[j*stride+x]) * c
			}
			row[x] = clipSum(s)
		}
	}
}
