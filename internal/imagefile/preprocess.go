package imagefile

import (
	"errors"
	"fmt"

	"github.com/deepmed/anomaly/models"
)

// ErrSide is returned when the side of the prepared image is below 1 or above
// models.MaxImageSize.
var ErrSide = errors.New("unusable image side")

// Prepared is an image that was resized to a network's input.
type Prepared struct {
	// W and H are the width and height of the original image, in pixels; of an upright
	// one if the orientation is applied.
	W, H int
	// Largest is the largest sample of an image of 16-bit samples, at least 1; else 0.
	Largest int
	// Pix holds red, green and blue of every pixel, rows from top to bottom:
	// side·side·3 bytes.
	Pix []byte
}

// Prepare decodes an untrusted image and resizes it to side×side pixels: side·side·3
// bytes, rows of red, green and blue. Prepare and Normalize are the whole
// preprocessing, in training and in inference; training keeps the bytes in memory.
// The errors are ErrImage, ErrTooLarge and ErrSide, wrapped.
func Prepare(data []byte, side int, o Options) ([]byte, error) {
	p, err := prepare(data, side, o, func(n int) []byte { return make([]byte, n) })
	return p.Pix, err
}

// PrepareSized is like Prepare and also returns the original image's size and its
// largest sample.
func PrepareSized(data []byte, side int, o Options) (*Prepared, error) {
	p, err := prepare(data, side, o, func(n int) []byte { return make([]byte, n) })
	if err != nil {
		return nil, err
	}
	return &p, nil
}

// PreparePooled is like PrepareSized, with memory from a pool; Release returns it.
func PreparePooled(data []byte, side int, o Options) (*Prepared, error) {
	p, err := prepare(data, side, o, func(n int) []byte { return *borrow(n) })
	if err != nil {
		return nil, err
	}
	return &p, nil
}

// Release returns the pixels' memory to the pool. Nobody may use Pix afterwards.
// An image that is not released is left to the garbage collector.
func (p *Prepared) Release() {
	pix := p.Pix
	p.Pix = nil
	giveBack(&pix)
}

// prepare is Prepare with a function that allocates the n bytes of the result.
func prepare(data []byte, side int, o Options, allocate func(n int) []byte) (Prepared, error) {
	if side < 1 || side > models.MaxImageSize {
		return Prepared{}, fmt.Errorf("%w: %d pixels, expected 1 to %d", ErrSide, side, models.MaxImageSize)
	}
	img, err := decode(data, o)
	if err != nil {
		return Prepared{}, err
	}
	defer giveBack(&img.Pix)
	defer giveBack(&img.plane)
	p := Prepared{W: img.W, H: img.H, Largest: img.largest, Pix: allocate(channels * side * side)}
	img.resizeTo(p.Pix, side, side)
	return p, nil
}

// unit holds float32(v)/255, PyTorch's .float()/255. A multiplication by 1/255
// would differ in the last bit for some values.
var unit = func() (t [256]float32) {
	for v := range t {
		t[v] = float32(v) / 255
	}
	return t
}()

// Normalize writes the network's input: the red, green and blue planes of the
// pixels, as values from 0 to 1. It panics if dst and pixels differ in length or
// the length is not a multiple of 3.
func Normalize(dst []float32, pixels []byte) {
	n := len(pixels) / 3
	if len(dst) != len(pixels) || len(pixels) != 3*n {
		panic(fmt.Sprintf("imagefile: %d bytes of pixels for %d floats", len(pixels), len(dst)))
	}
	r, g, b := dst[:n], dst[n:2*n], dst[2*n:]
	for i := range r {
		p := pixels[3*i : 3*i+3 : 3*i+3]
		r[i], g[i], b[i] = unit[p[0]], unit[p[1]], unit[p[2]]
	}
}
