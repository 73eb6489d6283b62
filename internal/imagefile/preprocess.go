package imagefile

import (
	"errors"
	"fmt"
	"slices"

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
	// Deep reports whether the image has more than 8 bits per sample, Float whether these
	// are floating-point, and Values are some thousand of its samples, evenly spaced. They
	// are set with Options.Probe only.
	Deep, Float bool
	Values      []float32
	// Shallow reports whether the image has 8 bits per sample and the window has values
	// above 255, so that the image is probably not of the kind that the window is for.
	Shallow bool
	// Original is the whole image at the size of Options.Original: red, green and blue of
	// each pixel; nil without that option.
	Original []byte
	// Frame is how the image is placed in the input.
	Frame models.Frame
	// Pix is the prepared image in the layout of Options.Layout.
	Pix []byte
}

// Prepare decodes an untrusted image and resizes it to a network's input, in the layout of
// Options.Layout: for a plain model size.W·size.H·3 bytes, rows of red, green and blue.
// Prepare and Normalize are the whole preprocessing, in training and in inference; training
// keeps the bytes in memory. The errors are ErrImage, ErrTooLarge and ErrSide, wrapped.
func Prepare(data []byte, size models.Size, o Options) ([]byte, error) {
	p, err := prepare(data, size, o, func(n int) []byte { return make([]byte, n) })
	return p.Pix, err
}

// PrepareSized is like Prepare and also returns the original image's size and its
// largest sample.
func PrepareSized(data []byte, size models.Size, o Options) (*Prepared, error) {
	p, err := prepare(data, size, o, func(n int) []byte { return make([]byte, n) })
	if err != nil {
		return nil, err
	}
	return &p, nil
}

// PreparePooled is like PrepareSized, with memory from a pool; Release returns it.
func PreparePooled(data []byte, size models.Size, o Options) (*Prepared, error) {
	p, err := prepare(data, size, o, func(n int) []byte { return *borrow(n) })
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
func prepare(data []byte, size models.Size, o Options, allocate func(n int) []byte) (Prepared, error) {
	for _, side := range []int{size.W, size.H} {
		if side < 1 || side > models.MaxImageSize {
			return Prepared{}, fmt.Errorf("%w: %d pixels, expected 1 to %d", ErrSide, side, models.MaxImageSize)
		}
	}
	img, err := decode(data, o)
	if err != nil {
		return Prepared{}, err
	}
	defer giveBack(&img.Pix)
	defer giveBack(&img.plane)
	p := Prepared{W: img.W, H: img.H, Largest: img.largest, Frame: models.FrameOf(size, o.Fit, img.W, img.H)}
	if o.Probe && img.samples != nil {
		p.Deep, p.Values = true, img.samples.some(img.W, img.H)
	}
	p.Shallow = o.Window != nil && img.samples == nil && o.Window[1] > 255
	layout := o.Layout(size)
	var mask []bool
	if layout.Masked {
		mask = o.Region.Place(p.Frame, o.mask)
		if !slices.Contains(mask, true) {
			return Prepared{}, fmt.Errorf("%w: no part of its %d×%d pixels is in the region to judge", ErrImage, img.W, img.H)
		}
	}
	p.Pix = allocate(layout.Bytes())
	switch {
	case o.Window != nil:
		img.deepTo(p.Pix, p.Frame, *o.Window)
	case img.Pix == nil && img.plane == nil: // floating point, probed
		p.Float = true
		clear(p.Pix)
	default:
		img.frameTo(p.Pix[:channels*size.Area()], p.Frame)
	}
	if o.Original != nil {
		p.Original = img.colours(o.Original(img.W, img.H), o.Window)
	}
	if mask != nil {
		layout.setMask(p.Pix, mask)
	}
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

// Normalize writes the network's input: the red, green and blue planes of a prepared image,
// as values from 0 to 1, and -1 for pixels that are not judged. It panics if the length of
// pixels is not that of a Layout for the length of dst.
func Normalize(dst []float32, pixels []byte) {
	n := len(dst) / channels
	layout, ok := layoutOf(n, len(pixels))
	if !ok || len(dst) != channels*n {
		panic(fmt.Sprintf("imagefile: %d bytes of pixels for %d floats", len(pixels), len(dst)))
	}
	r, g, b := dst[:n], dst[n:2*n], dst[2*n:]
	if layout.Deep {
		for i := range r {
			p := pixels[deepBytes*channels*i:][:deepBytes*channels]
			r[i], g[i], b[i] = deepAt(p), deepAt(p[deepBytes:]), deepAt(p[2*deepBytes:])
		}
	} else {
		for i := range r {
			p := pixels[3*i : 3*i+3 : 3*i+3]
			r[i], g[i], b[i] = unit[p[0]], unit[p[1]], unit[p[2]]
		}
	}
	if layout.Masked {
		for i, inside := range pixels[len(pixels)-n:] {
			if inside == 0 {
				r[i], g[i], b[i] = Outside, Outside, Outside
			}
		}
	}
}
