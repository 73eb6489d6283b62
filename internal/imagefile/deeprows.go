package imagefile

import (
	"encoding/binary"
	"math"

	"github.com/deepmed/anomaly/models"
)

// deepPixel is the size of a pixel of a deep row: red, green and blue within the window, as
// in a deep Layout.
const deepPixel = channels * deepBytes

// pixel returns the size of a pixel of next, in bytes.
func (r *rows) pixel() int {
	if r.window {
		return deepPixel
	}
	return channels
}

// within returns the rows of an image whose bytes are the values within a window. Rows that
// are within it already stay as they are.
func (r *rows) within(w models.Window) *rows {
	if r.window {
		return r
	}
	var values [256][deepBytes]byte
	for v := range values {
		putDeep(values[v][:], inWindow(float32(v), w))
	}
	out, line := *r, make([]byte, channels*r.w)
	out.window = true
	out.next = func(dst []byte) error {
		if err := r.next(line); err != nil {
			return err
		}
		for i, v := range line {
			copy(dst[deepBytes*i:], values[v][:])
		}
		return nil
	}
	return &out
}

// inWindow returns a value as 0…1 within the window.
func inWindow(v float32, w models.Window) float32 {
	low := float32(w[0])
	v = (v - low) / (float32(w[1]) - low)
	if !(v > 0) { // NaN, too
		return 0
	}
	return min(v, 1)
}

// fromSamples writes a deep row: pixels of stride samples, of which the first or the first
// three are its colours.
func fromSamples(dst []byte, n, stride int, grey bool, w models.Window, get func(i int) float32) {
	for x := range n {
		to := dst[deepPixel*x : deepPixel*(x+1)]
		for c := range channels {
			if grey && c > 0 {
				copy(to[deepBytes*c:], to[:deepBytes])
				continue
			}
			putDeep(to[deepBytes*c:], inWindow(get(x*stride+c), w))
		}
	}
}

// sampleReader returns a function that returns sample i of a row of 16 bits or, with float,
// of 32 bits of floating point.
func sampleReader(row *[]byte, order binary.ByteOrder, float bool) func(i int) float32 {
	if float {
		return func(i int) float32 { return math.Float32frombits(order.Uint32((*row)[4*i:])) }
	}
	return func(i int) float32 { return float32(order.Uint16((*row)[2*i:])) }
}

// deepRows returns the rows of an image of samples within a window.
func (img *RGB) deepRows(w models.Window) *rows {
	s, y := img.samples, 0
	line := make([]float32, img.W*s.channels)
	return &rows{w: img.W, h: img.H, largest: img.largest, window: true, deep: true, grey: s.channels == 1, next: func(dst []byte) error {
		s.row(line, 0, y, w)
		putRow(dst, line, s.channels)
		y++
		return nil
	}}
}

// putRow writes a deep row of values with one or three channels.
func putRow(dst []byte, values []float32, of int) {
	for x := range len(values) / of {
		for c := range channels {
			putDeep(dst[deepPixel*x+deepBytes*c:], values[x*of+c%of])
		}
	}
}

// resizedDeep is resized for rows within a window. It reads row by row, and keeps the values
// of the result.
func (r *rows) resizedDeep(w, h int) (*rows, error) {
	of := channels
	if r.grey {
		of = 1
	}
	line, at := make([]byte, deepPixel*r.w), 0
	var failed error
	values := resizeRows(func(dst []float32, y int) {
		for ; at <= y && failed == nil; at++ {
			failed = r.read(line)
		}
		for x := range r.w {
			for c := range of {
				dst[x*of+c] = deepAt(line[deepPixel*x+deepBytes*c:])
			}
		}
	}, models.Size{W: r.w, H: r.h}, models.Size{W: w, H: h}, of)
	for ; at < r.h && failed == nil; at++ {
		failed = r.read(line)
	}
	if failed == nil && r.end != nil {
		failed = r.end()
	}
	if failed != nil {
		return nil, failed
	}
	y := 0
	return &rows{w: w, h: h, largest: r.largest, window: true, deep: r.deep, grey: r.grey, next: func(dst []byte) error {
		putRow(dst, values[y*w*of:(y+1)*w*of], of)
		y++
		return nil
	}}, nil
}
