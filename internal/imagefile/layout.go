package imagefile

import (
	"encoding/binary"
	"math"

	"github.com/deepmed/anomaly/models"
)

// Outside is the value of a pixel that is not judged in the network's input.
const Outside = -1

// deepBytes is the size of a sample in a deep layout: a float32, little-endian.
const deepBytes = 4

// Layout is how the bytes of a prepared image are laid out: red, green and blue of each
// pixel, row by row, then with Masked one byte for each pixel, 1 for pixels that are judged
// and 0 for others. A sample is one byte or, with Deep, a float32 in 0…1. Pixels that are not
// judged are black.
type Layout struct {
	models.Size
	Deep, Masked bool
}

// Bytes returns the size of an image, in bytes.
func (l Layout) Bytes() int {
	n := channels
	if l.Deep {
		n *= deepBytes
	}
	if l.Masked {
		n++
	}
	return n * l.Area()
}

// layoutOf returns the layout, without its size, of an image of n pixels in that many bytes.
func layoutOf(n, bytes int) (Layout, bool) {
	for _, l := range []Layout{{}, {Masked: true}, {Deep: true}, {Deep: true, Masked: true}} {
		l.Size = models.Size{W: n, H: 1}
		if l.Bytes() == bytes {
			return l, true
		}
	}
	return Layout{}, false
}

// Colours returns the pixels of a prepared image as 8-bit samples, Size.Area()·3 bytes. They
// are those of the image itself unless it is Deep. The caller must not change them.
func (l Layout) Colours(image []byte) []byte {
	n := channels * l.Area()
	if !l.Deep {
		return image[:n]
	}
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(deepAt(image[deepBytes*i:])*255 + 0.5)
	}
	return out
}

// Mask returns the mask of a prepared image, Size.Area() bytes; nil if it has none.
func (l Layout) Mask(image []byte) []byte {
	if !l.Masked {
		return nil
	}
	return image[len(image)-l.Area():]
}

// Paint sets to to the image with other colours: colours are 8-bit samples, and before are
// those that Colours returned for the image. The samples of a deep image change by the
// difference of the two, so that pixels of equal colours keep their depth. Pixels that are
// not judged stay as they are. to and image must not overlap, and may be the same slice.
func (l Layout) Paint(to, image, before, colours []byte) {
	copy(to, image)
	mask := l.Mask(image)
	for i, v := range colours {
		switch {
		case mask != nil && mask[i/channels] == 0:
		case !l.Deep:
			to[i] = v
		case v != before[i]:
			putDeep(to[deepBytes*i:], min(max(deepAt(image[deepBytes*i:])+float32(int(v)-int(before[i]))/255, 0), 1))
		}
	}
}

// setMask writes the mask, and makes pixels outside black.
func (l Layout) setMask(image []byte, mask []bool) {
	to := image[len(image)-l.Area():]
	pixel := (len(image) - len(to)) / len(to)
	for i, in := range mask {
		to[i] = 1
		if !in {
			to[i] = 0
			clear(image[i*pixel : (i+1)*pixel])
		}
	}
}

func deepAt(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) }

func putDeep(b []byte, v float32) { binary.LittleEndian.PutUint32(b, math.Float32bits(v)) }
