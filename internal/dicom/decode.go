package dicom

import (
	"errors"
	"fmt"
	"math"

	"github.com/deepmed/anomaly/internal/jpeg2000"
	"github.com/deepmed/anomaly/internal/jpegextended"
	"github.com/deepmed/anomaly/internal/jpeglossless"
	"github.com/deepmed/anomaly/internal/jpegls"
)

// JPEG decodes a baseline JPEG of 8 bits, within the limits of the caller. It returns one
// sample per pixel for grey, else three: RGB converted from YCbCr if convert is set, or
// the components as they are stored.
type JPEG func(data []byte, convert bool) (w, h, components int, samples []byte, err error)

// Image is a decoded frame.
type Image struct {
	W, H int
	// Bits is the number of bits of a sample.
	Bits int
	// Grey are 16-bit values of a grey image, rows from top to bottom: the values within
	// the file's window, 0 is black. It is nil for a colour image.
	Grey []uint16
	// RGB are the red, green and blue bytes of a colour image.
	RGB []byte
}

// maxSamplesPerByte bounds the samples that a compressed frame may have for each byte, for
// codecs that encode a blank image of any size in a few bytes. Images of up to blank
// samples are accepted in any number of bytes.
const (
	maxSamplesPerByte = 16384
	blank             = 1 << 20
)

// File is a DICOM file whose attributes were read. Goroutines may decode its frames
// concurrently.
type File struct{ f *file }

// Open reads the attributes of a file and finds its frames. It compares the size and the
// number of frames with the limits, and decodes no pixels. An error is a sentence for the
// user, with no text of the file.
func Open(data []byte, lim Limits) (*File, error) {
	f, err := parse(data, lim)
	if err != nil {
		return nil, err
	}
	return &File{f}, nil
}

// Frames returns the number of frames, at least 1.
func (f *File) Frames() int { return f.f.frames }

// Decode decodes a frame, whose number begins at 0. It compares the size with the length
// of the file before it allocates memory for pixels. The errors are like Open's.
func (f *File) Decode(frame int, jpeg JPEG) (*Image, error) {
	of, err := f.f.frame(frame)
	if err != nil {
		return nil, err
	}
	return of.decode(frame, jpeg)
}

func (f *file) decode(frame int, jpeg JPEG) (*Image, error) {
	encoded, err := f.encoded(frame)
	if err != nil {
		return nil, err
	}
	f.conform(encoded)
	out := &Image{W: f.columns, H: f.rows}
	f.chooseCodec(encoded)
	if f.syntax.codec == codecJPEG && f.samples == 3 {
		out.RGB, err = f.colourJPEG(encoded, jpeg)
		return out, err
	}
	samples, err := f.unpack(frame, encoded, jpeg)
	if err != nil {
		return nil, err
	}
	out.Bits = f.stored
	switch {
	case f.photometric == "PALETTE COLOR":
		out.RGB = f.paletteRGB(samples)
	case f.samples == 3:
		out.RGB = f.colourRGB(samples)
	default:
		t, err := f.greys()
		if err != nil {
			return nil, err
		}
		for i, v := range samples {
			samples[i] = t[v]
		}
		out.Grey = samples
	}
	return out, nil
}

// extendedBits is the depth of a JPEG that the function of the caller does not decode.
const extendedBits = 12

// chooseCodec changes the codec if a JPEG has 12 bits.
func (f *file) chooseCodec(jpeg []byte) {
	if f.syntax.codec == codecJPEG && marksOf(jpeg).bits == extendedBits {
		f.syntax.codec = codecExtendedJPEG
	}
}

// maxJPEG2000Samples is the maximum of width times height times components of a JPEG
// 2000, whose decoder takes 8 to 14 bytes for each.
const maxJPEG2000Samples = 24_000_000

// unpack returns the samples of a frame. The samples of a pixel are adjacent.
func (f *file) unpack(frame int, data []byte, jpeg JPEG) ([]uint16, error) {
	expect := func(w, h, components int) error {
		if w != f.columns || h != f.rows || components != f.samples {
			return fmt.Errorf("the DICOM file states %d×%d pixels of %d samples and its %s image has %d×%d of %d: export it again",
				f.columns, f.rows, f.samples, f.syntax.name, w, h, components)
		}
		if n := int64(w) * int64(h) * int64(components); n > blank && n > maxSamplesPerByte*int64(len(data)) {
			return fmt.Errorf("the DICOM file states more pixels than its %s image of %d bytes can have: export it again", f.syntax.name, len(data))
		}
		return nil
	}
	// A codestream with fewer bits than the file states counts.
	depth := func(bits int) {
		f.stored = min(f.stored, bits)
		f.highBit = f.stored - 1
	}
	var samples []uint16
	var err error
	switch f.syntax.codec {
	case codecRLE:
		return f.unpackRLE(data)
	case codecJPEG:
		return f.greyJPEG(data, jpeg)
	case codecLosslessJPEG:
		_, samples, err = jpeglossless.Decode(data, func(h jpeglossless.Header) error { return expect(h.W, h.H, h.Components) })
	case codecExtendedJPEG:
		if f.allocated < extendedBits {
			return nil, fmt.Errorf("the DICOM file states %d bits allocated and its JPEG has %d: export it again", f.allocated, extendedBits)
		}
		_, samples, err = jpegextended.Decode(data, func(h jpegextended.Header) error { return expect(h.W, h.H, h.Components) })
		depth(extendedBits)
	case codecJPEGLS:
		var h jpegls.Header
		h, samples, err = jpegls.Decode(data, func(h jpegls.Header) error { return expect(h.W, h.H, h.Components) })
		depth(h.Bits)
	case codecJPEG2000:
		var h jpeg2000.Header
		if n := f.columns * f.rows * f.samples; n > maxJPEG2000Samples {
			return nil, fmt.Errorf("the JPEG 2000 image of the DICOM file has %d samples, at most %d are read: %s", n, maxJPEG2000Samples, uncompress)
		}
		h, samples, err = jpeg2000.Decode(data, func(h jpeg2000.Header) error { return expect(h.W, h.H, h.Components) })
		depth(h.Bits)
	default:
		return f.unpackNative(frame, data)
	}
	switch {
	case errors.Is(err, jpeglossless.ErrUnsupported), errors.Is(err, jpegextended.ErrUnsupported), errors.Is(err, jpegls.ErrUnsupported), errors.Is(err, jpeg2000.ErrUnsupported):
		return nil, fmt.Errorf("the %s image of the DICOM file is not read (%w): %s", f.syntax.name, err, uncompress)
	case errors.Is(err, jpeglossless.ErrDamaged), errors.Is(err, jpegextended.ErrDamaged), errors.Is(err, jpegls.ErrDamaged), errors.Is(err, jpeg2000.ErrDamaged):
		return nil, fmt.Errorf("the %s image of the DICOM file is damaged (%w): export it again", f.syntax.name, err)
	}
	return samples, err
}

// baseline decodes a baseline JPEG of the stated size.
func (f *file) baseline(data []byte, jpeg JPEG, convert bool) ([]byte, error) {
	w, h, components, samples, err := jpeg(data, convert)
	if err != nil {
		return nil, fmt.Errorf("the %s image of the DICOM file is damaged (%w): %s", f.syntax.name, err, uncompress)
	}
	if w != f.columns || h != f.rows || components != f.samples {
		return nil, fmt.Errorf("the DICOM file states %d×%d pixels of %d samples and its %s image has %d×%d of %d: export it again",
			f.columns, f.rows, f.samples, f.syntax.name, w, h, components)
	}
	return samples, nil
}

func (f *file) greyJPEG(data []byte, jpeg JPEG) ([]uint16, error) {
	b, err := f.baseline(data, jpeg, false)
	if err != nil {
		return nil, err
	}
	out := make([]uint16, len(b))
	for i, v := range b {
		out[i] = uint16(v)
	}
	return out, nil
}

// colourJPEG returns the colours of a baseline JPEG. The photometric interpretation
// decides whether they are converted.
func (f *file) colourJPEG(data []byte, jpeg JPEG) ([]byte, error) {
	return f.baseline(data, jpeg, f.photometric != "RGB")
}

// paletteRGB returns the colours of a palette's indexes.
func (f *file) paletteRGB(samples []uint16) []byte {
	var table [1 << 16][3]byte
	for bits := range len(table) {
		v := f.number(uint16(bits))
		for c := range 3 {
			table[bits][c] = f.palette[c].at(v, f.signed)
		}
	}
	out := make([]byte, 3*len(samples))
	for i, v := range samples {
		copy(out[3*i:3*i+3], table[v][:])
	}
	return out
}

// colourRGB returns colours of 8 bits.
func (f *file) colourRGB(samples []uint16) []byte {
	f.signed = false
	out := make([]byte, len(samples))
	for i, v := range samples {
		out[i] = f.to8(f.number(v))
	}
	if f.photometric == "YBR_FULL" || f.photometric == "YBR_FULL_422" {
		ybrToRGB(out)
	}
	return out
}

// to8 returns a sample with 8 bits.
func (f *file) to8(v int) byte {
	if f.stored >= 8 {
		return byte(v >> (f.stored - 8))
	}
	return byte(v * 255 / (1<<f.stored - 1))
}

// ybrToRGB converts colours in place (ITU-T T.871, section 7), rounded half up.
func ybrToRGB(pix []byte) {
	var red, blue, greenCb, greenCr [256]float64
	for i := range 256 {
		x := float64(i - 128)
		red[i], blue[i] = 1.402*x, 1.772*x
		greenCb[i], greenCr[i] = -0.114*1.772/0.587*x, -0.299*1.402/0.587*x
	}
	clip := func(v float64) byte { return byte(min(max(math.Floor(v+0.5), 0), 255)) }
	for i := 0; i+3 <= len(pix); i += 3 {
		y, cb, cr := float64(pix[i]), pix[i+1], pix[i+2]
		pix[i], pix[i+1], pix[i+2] = clip(y+red[cr]), clip(y+greenCb[cb]+greenCr[cr]), clip(y+blue[cb])
	}
}
