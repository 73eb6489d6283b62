package synthetic

import (
	"image"
	"math"
)

// blur applies a Gaussian blur to a part of an image. It approximates the Gaussian by
// boxBlurs successive box filters, whose cost does not depend on the standard deviation.
// It reuses its buffers.
type blur struct {
	upright, turned []float32
	line, next      []float32
}

// boxBlurs is the number of box filters. Their windows extend by a fraction of a pixel,
// so that the standard deviation is exact (extended box filters; Gwosdek et al., 2011).
const boxBlurs = 3

// of blurs an image of imageW×imageH×3 bytes with a standard deviation in pixels. The
// returned function returns the blurred pixel at a point of the box, and is valid until
// the next call of of.
func (b *blur) of(pixels []byte, imageW, imageH int, box image.Rectangle, deviation float64) func(x, y int) []float32 {
	reach, rest := window(deviation)
	part := box.Inset(-boxBlurs * (reach + 1)).Intersect(image.Rect(0, 0, imageW, imageH))
	w, h := part.Dx(), part.Dy()
	row := w * channels
	b.upright, b.turned = grown(b.upright, h*row), grown(b.turned, h*row)
	for y := range h {
		line := b.upright[y*row:][:row]
		for i, v := range pixels[((y+part.Min.Y)*imageW+part.Min.X)*channels:][:row] {
			line[i] = float32(v)
		}
	}
	b.rows(b.turned, b.upright, w, h, reach, rest)
	b.rows(b.upright, b.turned, h, w, reach, rest)
	return func(x, y int) []float32 {
		at := ((y-part.Min.Y)*w + x - part.Min.X) * channels
		return b.upright[at : at+channels]
	}
}

// window returns the radius of a box filter in whole pixels and the weight of the next
// pixel on either side, so that boxBlurs filters together have this standard deviation.
func window(deviation float64) (reach int, rest float32) {
	variance := deviation * deviation / boxBlurs
	// A box filter over 2k+1 pixels has the variance k(k+1)/3.
	k := math.Floor(math.Sqrt(3*variance+0.25) - 0.5)
	weight := (2*k + 1) * (3*variance - k*(k+1)) / (6 * ((k+1)*(k+1) - variance))
	return int(k), float32(weight)
}

// rows blurs h rows of w pixels and writes them as columns.
func (b *blur) rows(to, from []float32, w, h, reach int, rest float32) {
	const c = channels
	b.line, b.next = grown(b.line, w*c), grown(b.next, w*c)
	for y := range h {
		copy(b.line, from[y*w*c:][:w*c])
		for range boxBlurs {
			boxFilter(b.next, b.line, reach, rest)
			b.line, b.next = b.next, b.line
		}
		for x := range w {
			copy(to[(x*h+y)*c:][:c], b.line[x*c:][:c])
		}
	}
}

// boxFilter averages over 2·reach+1 pixels and, with the weight rest, one more on either
// side. The first and last pixels are repeated beyond the ends.
func boxFilter(to, from []float32, reach int, rest float32) {
	const c = channels
	last := len(from)/c - 1
	share := 1 / (float32(2*reach+1) + 2*rest)
	for k := range c {
		sum := from[k] * float32(reach+1)
		for i := 1; i <= reach; i++ {
			sum += from[min(i, last)*c+k]
		}
		for i := range last + 1 {
			next := from[min(i+reach+1, last)*c+k]
			to[i*c+k] = share * (sum + rest*(next+from[max(i-reach-1, 0)*c+k]))
			sum += next - from[max(i-reach, 0)*c+k]
		}
	}
}
