package imagefile

import (
	"errors"
	"fmt"

	"github.com/deepmed/anomaly/models"
)

// ErrSide is returned when an image is to be prepared for a side that no
// network has.
var ErrSide = errors.New("unusable image side")

// Prepare decodes an untrusted image and resizes it to the square the network
// sees: side·side·3 bytes, rows of pixels of red, green and blue. This and
// Normalize are the whole preprocessing, in training and in detection; training
// keeps these bytes in memory. It returns ErrImage, ErrTooLarge or, for a
// side below 1 or above models.MaxImageSize, ErrSide, wrapped.
func Prepare(data []byte, side int, lim Limits) ([]byte, error) {
	return prepare(data, side, lim, func(n int) []byte { return make([]byte, n) })
}

// PreparePooled is Prepare into memory that Release returns to a pool.
func PreparePooled(data []byte, side int, lim Limits) ([]byte, error) {
	return prepare(data, side, lim, func(n int) []byte { return *borrow(n) })
}

// Release returns PreparePooled's pixels to the pool. The caller must not use them
// afterwards.
func Release(pixels []byte) { giveBack(&pixels) }

// prepare is Prepare into n bytes that memory allocates.
func prepare(data []byte, side int, lim Limits, memory func(n int) []byte) ([]byte, error) {
	if side < 1 || side > models.MaxImageSize {
		return nil, fmt.Errorf("%w: %d pixels, expected 1 to %d", ErrSide, side, models.MaxImageSize)
	}
	img, err := decode(data, lim)
	if err != nil {
		return nil, err
	}
	// The caller has what is made of it, and nobody what it is made of.
	defer giveBack(&img.Pix)
	defer giveBack(&img.plane)
	pixels := memory(channels * side * side)
	img.resizeTo(pixels, side, side)
	return pixels, nil
}

// unit holds float32(v)/255, which is what PyTorch's .float()/255 gives;
// multiplying by 1/255 would differ in the last bit for some values.
var unit = func() (t [256]float32) {
	for v := range t {
		t[v] = float32(v) / 255
	}
	return t
}()

// Normalize turns Prepare's bytes into the network's input: three planes, red,
// green and blue, of values from 0 to 1. It panics when dst is not as long as
// pixels, or they are not whole pixels.
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
