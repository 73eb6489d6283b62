package imagefile

import (
	"image"
	"image/color"
	"math"
	"slices"

	"github.com/deepmed/anomaly/models"
)

// samples are the samples of a decoded image, of any depth.
type samples struct {
	channels int
	// The pixel at x, y is base + x·dx + y·dy, whose samples get returns.
	base, dx, dy int
	get          func(pixel, channel int) float32
}

// floatImage is a TIFF of floating-point samples.
type floatImage struct {
	rect     image.Rectangle
	channels int // 1 or 3
	pix      []float32
}

// ColorModel, Bounds and At implement image.Image.
func (m *floatImage) ColorModel() color.Model { return color.GrayModel }

// Bounds returns the size of the image.
func (m *floatImage) Bounds() image.Rectangle { return m.rect }

// At returns black: the samples have no colours without a window.
func (m *floatImage) At(int, int) color.Color { return color.Gray{} }

// deepSamples returns the samples of an image of more than 8 bits per sample, and nil for any
// other.
func (o Options) deepSamples(m image.Image) *samples {
	b := m.Bounds()
	s := &samples{channels: 3, dx: 1, dy: b.Dx()}
	var pix []byte
	size := 8
	switch m := m.(type) {
	case *image.Gray16:
		pix, size, s.channels, s.dy = m.Pix, 2, 1, m.Stride/2
	case *image.NRGBA64:
		pix, s.dy = m.Pix, m.Stride/8
	case *image.RGBA64:
		pix, s.dy = m.Pix, m.Stride/8
		if !m.Opaque() {
			s.get = func(pixel, channel int) float32 {
				p := pix[size*pixel:]
				alpha := float32(int(p[6])<<8 | int(p[7]))
				if alpha == 0 {
					return 0
				}
				return min(float32(int(p[2*channel])<<8|int(p[2*channel+1]))*65535/alpha, 65535)
			}
			return s
		}
	case *floatImage:
		s.channels = m.channels
		s.get = func(pixel, channel int) float32 { return m.pix[m.channels*pixel+channel] }
		return s
	default:
		return nil
	}
	s.get = func(pixel, channel int) float32 {
		p := pix[size*pixel+2*channel:]
		return float32(int(p[0])<<8 | int(p[1]))
	}
	return s
}

// ofRGB returns the samples of an image of 8 bits.
func ofRGB(img *RGB) *samples {
	if img.plane != nil {
		return &samples{channels: 1, dx: 1, dy: img.W, get: func(pixel, _ int) float32 { return float32(img.plane[pixel]) }}
	}
	return &samples{channels: channels, dx: 1, dy: img.W, get: func(pixel, channel int) float32 { return float32(img.Pix[channels*pixel+channel]) }}
}

// orient applies an orientation from 2 to 8 to an image of w×h pixels; see RGB.oriented.
func (s *samples) orient(w, h, orientation int) {
	base, dx, dy := s.base, s.dx, s.dy
	mirrorX, mirrorY := false, false
	switch orientation {
	case 2, 8:
		mirrorX = true
	case 3, 7:
		mirrorX, mirrorY = true, true
	case 4, 6:
		mirrorY = true
	}
	if mirrorX {
		base, dx = base+(w-1)*dx, -dx
	}
	if mirrorY {
		base, dy = base+(h-1)*dy, -dy
	}
	if orientation >= 5 {
		dx, dy = dy, dx
	}
	s.base, s.dx, s.dy = base, dx, dy
}

// maxProbed bounds the values that some returns for one image.
const maxProbed = 4096

// some returns values of the image, evenly spaced, without those that are not finite.
func (s *samples) some(w, h int) []float32 {
	n := w * h * s.channels
	step := max((n+maxProbed-1)/maxProbed, 1)
	out := make([]float32, 0, n/step+1)
	for i := 0; i < n; i += step {
		pixel, channel := i/s.channels, i%s.channels
		if v := s.get(s.base+pixel%w*s.dx+pixel/w*s.dy, channel); v-v == 0 {
			out = append(out, v)
		}
	}
	return out
}

// row writes the values of a row from column x0 on, as 0…1 within the window.
func (s *samples) row(dst []float32, x0, y int, w models.Window) {
	pixel := s.base + x0*s.dx + y*s.dy
	for i := 0; i < len(dst); i += s.channels {
		for c := range s.channels {
			dst[i+c] = inWindow(s.get(pixel, c), w)
		}
		pixel += s.dx
	}
}

// deepTo writes the part of the image that the frame keeps to the pixels of a deep layout:
// values within the window, resized as Pillow resizes floating-point images (mode "F").
func (img *RGB) deepTo(pix []byte, f models.Frame, w models.Window) {
	src := img.samples
	if src == nil {
		src = ofRGB(img)
	}
	to := f.To.Size()
	values := src.resized(f.From, to, w)
	n := channels * f.Input.Area() * deepBytes
	clear(pix[:n])
	for y := range to.H {
		at := deepBytes * channels * ((f.To.Y0+y)*f.Input.W + f.To.X0)
		for x := range to.W {
			for c := range channels {
				putDeep(pix[at:], values[(y*to.W+x)*src.channels+c%src.channels])
				at += deepBytes
			}
		}
	}
}

// resized returns a box of the image, within the window, at that size.
func (s *samples) resized(box models.Box, to models.Size, w models.Window) []float32 {
	return resizeRows(func(dst []float32, y int) { s.row(dst, box.X0, box.Y0+y, w) }, box.Size(), to, s.channels)
}

// resizeRows returns an image of c values for each pixel, whose rows read returns, at another
// size. It reads rows from top to bottom, none twice, and none that has no share in the
// result. The order of the two passes is that of RGB.Resize.
func resizeRows(read func(dst []float32, y int), from, to models.Size, c int) []float32 {
	row := make([]float32, from.W*c)
	switch {
	case from.W == to.W: // no pass along the rows
		return shrinkRows(read, from.H, to.H, row)
	case from.H == to.H:
		columns := newFloatWeights(from.W, to.W)
		out := make([]float32, to.Area()*c)
		for y := range to.H {
			read(row, y)
			columns.apply(out[y*to.W*c:(y+1)*to.W*c], row, c)
		}
		return out
	case verticalFirst(from, to):
		tall := shrinkRows(read, from.H, to.H, row)
		columns := newFloatWeights(from.W, to.W)
		out := make([]float32, to.Area()*c)
		for y := range to.H {
			columns.apply(out[y*to.W*c:(y+1)*to.W*c], tall[y*from.W*c:(y+1)*from.W*c], c)
		}
		return out
	}
	columns := newFloatWeights(from.W, to.W)
	return shrinkRows(func(dst []float32, y int) {
		read(row, y)
		columns.apply(dst, row, c)
	}, from.H, to.H, make([]float32, to.W*c))
}

// shrinkRows resizes n rows, which read returns in row, to m rows. It reads each row once.
func shrinkRows(read func(dst []float32, y int), n, m int, row []float32) []float32 {
	out := make([]float32, m*len(row))
	if n == m {
		for y := range m {
			read(out[y*len(row):(y+1)*len(row)], y)
		}
		return out
	}
	// Pillow adds in float64 and rounds the sum.
	rows := newFloatWeights(n, m)
	sums := map[int][]float64{}
	var idle [][]float64
	next := 0 // the first output whose window has not begun
	done := 0
	for y := range n {
		for next < m && rows.first[next] <= y {
			sum := make([]float64, len(row))
			if last := len(idle) - 1; last >= 0 {
				sum, idle = idle[last], idle[:last]
				clear(sum)
			}
			sums[next] = sum
			next++
		}
		if done == next {
			continue // no window has this row
		}
		read(row, y)
		for i := done; i < next; i++ {
			k := y - rows.first[i]
			if k >= len(rows.coeffs[i]) {
				continue
			}
			f, sum := rows.coeffs[i][k], sums[i]
			for x, v := range row {
				sum[x] += float64(float64(v) * f)
			}
		}
		for done < next && y+1 >= rows.first[done]+len(rows.coeffs[done]) {
			to := out[done*len(row) : (done+1)*len(row)]
			for x, v := range sums[done] {
				to[x] = float32(v)
			}
			idle = append(idle, sums[done])
			delete(sums, done)
			done++
		}
	}
	return out
}

// floatWeights are the triangle filter's coefficients for one direction, in float64.
type floatWeights struct {
	first  []int
	coeffs [][]float64
}

func newFloatWeights(in, out int) floatWeights {
	w := floatWeights{first: make([]int, out), coeffs: make([][]float64, out)}
	triangles(in, out, func(i, first int, norm []float64) { w.first[i], w.coeffs[i] = first, slices.Clone(norm) })
	return w
}

// apply resizes a row of c samples per pixel.
func (w floatWeights) apply(dst, src []float32, c int) {
	for i, first := range w.first {
		for ch := range c {
			sum := 0.0
			for k, f := range w.coeffs[i] {
				sum += float64(float64(src[(first+k)*c+ch]) * f)
			}
			dst[i*c+ch] = float32(sum)
		}
	}
}

// triangles calls f with the first input and the coefficients of each output: Pillow's
// precompute_coeffs for the bilinear filter. The float64 conversions of products prevent
// fused multiply-adds (on arm64), which would round differently. The coefficients are valid
// until f returns.
func triangles(in, out int, f func(i, first int, norm []float64)) {
	scale := float64(in) / float64(out)
	support := max(scale, 1) // half the width of the triangle; it grows with the reduction
	inverse := 1 / support
	norm := make([]float64, 0, 2*int(math.Ceil(support))+1)
	for i := range out {
		center := float64((float64(i) + 0.5) * scale)
		first := max(int(center-support+0.5), 0)
		end := min(int(center+support+0.5), in)
		norm = norm[:0]
		sum := 0.0
		for x := first; x < end; x++ {
			// Pillow's bilinear_filter: a triangle between -1 and 1.
			v := max(1-math.Abs(float64((float64(x)-center+0.5)*inverse)), 0)
			norm = append(norm, v)
			sum += v
		}
		if sum != 0 {
			for k := range norm {
				norm[k] /= sum
			}
		}
		f(i, first, norm)
	}
}

// colours returns the image at that size, by its nearest pixels, as 8-bit samples: within the
// window, if there is one.
func (img *RGB) colours(size models.Size, w *models.Window) []byte {
	src := img.samples
	if src == nil {
		src = ofRGB(img)
	}
	if w == nil {
		w = &models.Window{0, 255}
	}
	out := make([]byte, 0, channels*size.Area())
	row := make([]float32, img.W*src.channels)
	for y := range size.H {
		src.row(row, 0, (2*y+1)*img.H/(2*size.H), *w)
		for x := range size.W {
			at := (2*x + 1) * img.W / (2 * size.W) * src.channels
			for c := range channels {
				out = append(out, byte(row[at+c%src.channels]*255+0.5))
			}
		}
	}
	return out
}
