package jpegextended

import (
	"fmt"
	"math"

	"github.com/deepmed/anomaly/internal/jpegmarkers"
)

const (
	side      = 8
	blockSize = side * side
	// maxDC is the highest category of a difference of 12-bit samples' DC coefficients.
	maxDC = 15
)

// zigzag is the position in a block of each coefficient in the order of the file.
var zigzag = func() (t [blockSize]int) {
	x, y := 0, 0
	for i := range t {
		t[i] = y*side + x
		switch {
		case (x+y)%2 == 0 && x == side-1:
			y++
		case (x+y)%2 == 0 && y == 0:
			x++
		case (x+y)%2 == 0:
			x, y = x+1, y-1
		case y == side-1:
			x++
		case x == 0:
			y++
		default:
			x, y = x-1, y+1
		}
	}
	return t
}()

// basis[u][x] is the value of the cosine of frequency u at sample x (T.81, A.3.3), with the
// factor 1/2 and, for frequency 0, 1/√2.
var basis = func() (t [side][side]float64) {
	for u := range t {
		for x := range t[u] {
			t[u][x] = math.Cos(float64(2*x+1)*float64(u)*math.Pi/(2*side)) / 2
			if u == 0 {
				t[u][x] = math.Sqrt2 / 4
			}
		}
	}
	return t
}()

// component is a component of a scan.
type component struct {
	at     int // in a pixel
	dc, ac *jpegmarkers.HuffmanTable
	steps  *[blockSize]uint16
	last   int // the DC coefficient of the block before
}

// scan is the state of decoding one scan.
type scan struct {
	w, h, stride int
	samples      []uint16
	components   []component
	restart      int // blocks between restarts, or 0
}

// decode decodes the samples and returns the rest of the file.
func (s *scan) decode(data []byte) ([]byte, error) {
	r := jpegmarkers.NewBitReader(data, failures)
	var block [blockSize]float64
	columns, done := (s.w+side-1)/side, 0
	for y := 0; y < s.h; y += side {
		for x := range columns {
			if s.restart > 0 && done > 0 && done%s.restart == 0 {
				if err := r.Restart(); err != nil {
					return nil, err
				}
				for i := range s.components {
					s.components[i].last = 0
				}
			}
			done++
			for i := range s.components {
				c := &s.components[i]
				last, err := c.read(&r, &block)
				if err != nil {
					return nil, fmt.Errorf("%w in row %d of %d", err, y, s.h)
				}
				transform(&block, last)
				s.put(&block, x*side, y, c.at)
			}
		}
	}
	return r.Rest(), nil
}

// read decodes the coefficients of a block, multiplied by the quantization steps. It returns
// the row of the last one that is not 0.
func (c *component) read(r *jpegmarkers.BitReader, block *[blockSize]float64) (lastRow int, err error) {
	*block = [blockSize]float64{}
	category, err := r.Symbol(c.dc)
	if err != nil {
		return 0, err
	}
	diff, err := r.Signed(category)
	if err != nil {
		return 0, err
	}
	const limit = 1 << 20 // far beyond the range of 12-bit samples
	c.last = min(max(c.last+diff, -limit), limit)
	block[0] = float64(c.last) * float64(c.steps[0])
	for k := 1; k < blockSize; k++ {
		symbol, err := r.Symbol(c.ac)
		if err != nil {
			return 0, err
		}
		zeros, category := symbol>>4, symbol&15
		if category == 0 {
			if zeros != 15 { // the end of the block
				break
			}
			k += 15
			continue
		}
		if k += zeros; k >= blockSize {
			return 0, fmt.Errorf("%w: a block has too many coefficients", ErrDamaged)
		}
		v, err := r.Signed(category)
		if err != nil {
			return 0, err
		}
		at := zigzag[k]
		block[at] = float64(v) * float64(c.steps[k])
		lastRow = max(lastRow, at/side)
	}
	return lastRow, nil
}

// transform is the inverse discrete cosine transform, in place. Rows after lastRow are 0.
func transform(block *[blockSize]float64, lastRow int) {
	var rows [blockSize]float64
	for v := range lastRow + 1 {
		in, out := block[v*side:(v+1)*side], rows[v*side:(v+1)*side]
		for u, f := range in {
			if f != 0 {
				for x, b := range basis[u] {
					out[x] += f * b
				}
			}
		}
	}
	*block = [blockSize]float64{}
	for v := range lastRow + 1 {
		in := rows[v*side : (v+1)*side]
		for y, b := range basis[v] {
			out := block[y*side : (y+1)*side]
			for x, f := range in {
				out[x] += f * b
			}
		}
	}
}

// put writes the samples of a block into the image, as far as they are inside.
func (s *scan) put(block *[blockSize]float64, x0, y0, at int) {
	const half, highest = 1 << (depth - 1), 1<<depth - 1
	for y := range min(side, s.h-y0) {
		for x := range min(side, s.w-x0) {
			v := math.Floor(block[y*side+x] + half + 0.5)
			s.samples[((y0+y)*s.w+x0+x)*s.stride+at] = uint16(min(max(v, 0), highest))
		}
	}
}
