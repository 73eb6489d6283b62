package imagefile

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"

	"golang.org/x/image/tiff"
	"golang.org/x/image/webp"
)

// Errors of reading an image. They are wrapped with one sentence that names what was
// expected and what was found.
var (
	// ErrImage is returned when bytes are not an image in a supported format, or
	// the image is damaged.
	ErrImage = errors.New("not a readable image")
	// ErrTooLarge is returned when an image has more bytes or pixels than the limits
	// allow.
	ErrTooLarge = errors.New("the image is too large")
)

// maxDimension bounds the width and the height of an image, in pixels. It is the
// limit of JPEG and GIF. A longer TIFF or PNG would need resize coefficients as large
// as the image.
const maxDimension = 65535

// RGB is an image with 8 bits per channel and no alpha.
type RGB struct {
	// W and H are the width and height in pixels, both at least 1.
	W, H int
	// Pix holds red, green and blue of every pixel, rows from top to bottom:
	// 3·W·H bytes.
	Pix []byte

	// plane holds the values of a grey image, W·H bytes; nil for colour images. Pix
	// of a grey image is nil until spread sets it.
	plane []byte
	// largest is the largest sample of an image of more than 8 bits per sample, else 0.
	largest int
	// samples are those of an image of more than 8 bits per sample, if Options ask for
	// them; Pix and plane are nil then, except with Options.Probe.
	samples *samples
}

// spread sets Pix of a grey image from its plane.
func (img *RGB) spread() *RGB {
	if img.Pix == nil {
		img.Pix = *borrow(3 * len(img.plane))
		repeat(img.Pix, img.plane)
	}
	return img
}

func newRGB(w, h int) *RGB { return &RGB{W: w, H: h, Pix: make([]byte, 3*w*h)} }

// Limits bound the cost of an untrusted image. A field of 0 or less means the
// default.
type Limits struct {
	// MaxBytes bounds the encoded image, in bytes.
	MaxBytes int64
	// MaxPixels bounds width times height. A decoder takes 1 to 8 bytes per pixel, a
	// progressive JPEG up to 20, a colour JPEG 2000 in a DICOM file up to 26, and the
	// RGB result 3 more.
	MaxPixels int
}

// DefaultLimits returns 32 MiB of encoded image and 64 megapixels.
func DefaultLimits() Limits {
	return Limits{MaxBytes: 32 << 20, MaxPixels: 64_000_000}
}

// OrDefault returns the limits with fields of 0 or less replaced by the default.
func (l Limits) OrDefault() Limits {
	d := DefaultLimits()
	if l.MaxBytes <= 0 {
		l.MaxBytes = d.MaxBytes
	}
	if l.MaxPixels <= 0 {
		l.MaxPixels = d.MaxPixels
	}
	return l
}

// CheckBytes returns ErrTooLarge, wrapped, if an encoded image of n bytes exceeds the
// limits.
func (l Limits) CheckBytes(n int64) error {
	if limit := l.OrDefault().MaxBytes; n > limit {
		return fmt.Errorf("%w: more than %d bytes, which is the most that are read", ErrTooLarge, limit)
	}
	return nil
}

// check returns an error if the dimensions, in pixels, are outside the limits.
func (l Limits) check(w, h int) error {
	if w < 1 || h < 1 {
		return fmt.Errorf("%w: it is %d×%d pixels", ErrImage, w, h)
	}
	if w > maxDimension || h > maxDimension || w > l.MaxPixels/h {
		return fmt.Errorf("%w: it is %d×%d pixels, at most %d pixels and %d a side are read",
			ErrTooLarge, w, h, l.MaxPixels, maxDimension)
	}
	return nil
}

// Decode decodes a PNG, JPEG, GIF, BMP, TIFF, WebP or DICOM image, recognized by its content.
// Of an animation or a document it decodes the first frame or page; OpenFrames has the
// frames of a DICOM file. The result is that
// of Pillow's Image.open(f).convert("RGB"): alpha and a palette's transparency are
// dropped without compositing, CMYK is converted without a colour profile, a TIFF's
// orientation is applied, and the EXIF orientation if o asks for it.
//
// There is one exception: 16-bit grey is scaled to 8 bits, see Options.MaxValue. Pillow
// clips values above 255 to white. 16-bit colour is scaled in both, in Pillow always
// by 65535.
//
// Decode compares the dimensions in the header with the limits and with the file's
// length before it allocates memory for the pixels. The errors are ErrImage and
// ErrTooLarge, wrapped.
func Decode(data []byte, o Options) (*RGB, error) {
	img, err := decode(data, o)
	if err != nil {
		return nil, err
	}
	return img.spread(), nil
}

// decode is Decode without spread: the Pix of a grey image is nil.
func decode(data []byte, o Options) (img *RGB, err error) {
	o = o.orDefault()
	if err := o.CheckBytes(int64(len(data))); err != nil {
		return nil, err
	}
	format, _ := Sniff(data)
	c := codecs[format]
	if c == nil {
		return nil, fmt.Errorf("%w: %s", ErrImage, format.refusal(data))
	}
	// A panic of a decoder means that the image is damaged. All work below is done in
	// this goroutine, so recover catches it.
	defer func() {
		if p := recover(); p != nil {
			img, err = nil, fmt.Errorf("%w: damaged %s: %v", ErrImage, format, p)
		}
	}()
	img, err = c(data, o)
	if err == nil || errors.Is(err, ErrImage) || errors.Is(err, ErrTooLarge) {
		return img, err
	}
	return nil, fmt.Errorf("%w: damaged or unsupported %s: %w", ErrImage, format, err)
}

// codecs are the readers of the formats. They are called directly: image.Decode would
// also pass untrusted bytes to formats that other packages register.
var codecs = map[Format]func(data []byte, o Options) (*RGB, error){
	PNG: readPNG, JPEG: readJPEG, GIF: readGIF, BMP: readBMP, TIFF: readTIFF, WebP: readWebP, DICOM: readDICOM,
}

// decodeWith decodes with one of the library's decoders. Before, it checks the header
// against the limits and the file's length.
func decodeWith(data []byte, lim Limits,
	config func(*bytes.Reader) (image.Config, error),
	plausible func(image.Config) error,
	decode func(*bytes.Reader) (image.Image, error),
	convert func(image.Image) (*RGB, error),
) (*RGB, error) {
	cfg, err := config(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if err := lim.check(cfg.Width, cfg.Height); err != nil {
		return nil, err
	}
	if err := plausible(cfg); err != nil {
		return nil, err
	}
	m, err := decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if b := m.Bounds(); b.Dx() != cfg.Width || b.Dy() != cfg.Height {
		return nil, fmt.Errorf("%w: %d×%d pixels in the header, %d×%d in the content",
			ErrImage, cfg.Width, cfg.Height, b.Dx(), b.Dy())
	}
	return convert(m)
}

func readPNG(data []byte, o Options) (*RGB, error) {
	data = completePNG(data)
	img, err := decodeWith(data, o.Limits,
		func(r *bytes.Reader) (image.Config, error) { return png.DecodeConfig(r) },
		func(c image.Config) error { return plausiblePNG(data, c) },
		func(r *bytes.Reader) (image.Image, error) { return png.Decode(r) },
		o.toRGB)
	if err != nil || !o.Upright {
		return img, err
	}
	return img.oriented(pngOrientation(data)), nil
}

func readJPEG(data []byte, o Options) (*RGB, error) {
	data = withHuffmanTables(data)
	img, err := decodeJPEG(data, o.Limits, o.toRGB)
	var unsupported jpeg.UnsupportedError
	if errors.As(err, &unsupported) {
		img, err = readSampledJPEG(data, o.Limits)
	}
	if err != nil || !o.Upright {
		return img, err
	}
	return img.oriented(jpegOrientation(data)), nil
}

func decodeJPEG(data []byte, lim Limits, convert func(image.Image) (*RGB, error)) (*RGB, error) {
	return decodeWith(data, lim,
		func(r *bytes.Reader) (image.Config, error) { return jpeg.DecodeConfig(r) },
		func(c image.Config) error { return plausibleJPEG(data, c) },
		func(r *bytes.Reader) (image.Image, error) { return jpeg.Decode(r) },
		convert)
}

// jpegPlanes decodes a JPEG to its planes, with the checks of decodeJPEG.
func jpegPlanes(data []byte, lim Limits) (planes image.Image, err error) {
	_, err = decodeJPEG(data, lim, func(m image.Image) (*RGB, error) {
		planes = m
		return nil, nil
	})
	return planes, err
}

// pngConfig reads the header of a PNG, with the checks of readPNG.
func pngConfig(data []byte, lim Limits) (image.Config, error) {
	cfg, err := png.DecodeConfig(bytes.NewReader(data))
	if err == nil {
		err = lim.check(cfg.Width, cfg.Height)
	}
	if err == nil {
		err = plausiblePNG(data, cfg)
	}
	return cfg, err
}

func readTIFF(data []byte, o Options) (*RGB, error) {
	dir, err := readTIFFDirectory(data)
	if err != nil {
		return nil, err
	}
	w, h := dir.size()
	if err := o.check(w, h); err != nil {
		return nil, err
	}
	if err := dir.supported(o.Window != nil || o.Probe); err != nil {
		return nil, err
	}
	o.inverted = dir.first(tagPhotometric) == whiteIsZero
	config := func(r *bytes.Reader) (image.Config, error) { return tiff.DecodeConfig(r) }
	read := func(r *bytes.Reader) (image.Image, error) { return tiff.Decode(r) }
	if dir.ownReader() {
		size := image.Config{Width: w, Height: h}
		config = func(*bytes.Reader) (image.Config, error) { return size, nil }
		read = func(*bytes.Reader) (image.Image, error) { return dir.readOwnTIFF(data, size, o.Limits) }
	}
	img, err := decodeWith(data, o.Limits, config,
		func(c image.Config) error { return dir.plausible(len(data), c, o.Limits) }, read, o.toRGB)
	if err != nil {
		return nil, err
	}
	if dir.inverted() {
		img.spread()
		img.plane = nil // the change below is to Pix
		for i, v := range img.Pix {
			img.Pix[i] = 255 - v
		}
	}
	return img.oriented(dir.orientation(o.Upright)), nil
}

func readWebP(data []byte, o Options) (*RGB, error) {
	img, err := readFirstWebP(data, o)
	if err != nil || !o.Upright {
		return img, err
	}
	return img.oriented(webpOrientation(data)), nil
}

// readFirstWebP reads a WebP, or the first frame of an animated one.
func readFirstWebP(data []byte, o Options) (*RGB, error) {
	f, animated, err := firstWebPFrame(data)
	if err != nil {
		return nil, err
	}
	if !animated {
		return readStillWebP(data, o)
	}
	if err := o.check(f.canvas.Width, f.canvas.Height); err != nil {
		return nil, err
	}
	if err := plausibleWebP(f.still, f.canvas); err != nil {
		return nil, err
	}
	picture, err := readStillWebP(f.still, o)
	if err != nil {
		return nil, err
	}
	if picture.W != f.frame.Width || picture.H != f.frame.Height {
		return nil, fmt.Errorf("%w: a frame of an animated WebP has %d×%d pixels in its header and %d×%d in its content",
			ErrImage, f.frame.Width, f.frame.Height, picture.W, picture.H)
	}
	return f.onCanvas(picture), nil
}

func readStillWebP(data []byte, o Options) (*RGB, error) {
	return decodeWith(data, o.Limits,
		func(r *bytes.Reader) (image.Config, error) { return webp.DecodeConfig(r) },
		func(c image.Config) error { return plausibleWebP(data, c) },
		func(r *bytes.Reader) (image.Image, error) { return webp.Decode(r) },
		o.webpToRGB)
}

// readDICOM reads a frame of a DICOM file, the first one unless the options are those of
// Frames.Options. Its grey values are within the file's
// window, so Options.MaxValue, the scale of values without a window, does not apply.
func readDICOM(data []byte, o Options) (*RGB, error) {
	if o.opened == nil {
		opened, err := openDICOM(data, o)
		if err != nil {
			return nil, err
		}
		o.opened = opened
	}
	frame, err := o.opened.Decode(o.frame, o.dicomJPEG)
	if err != nil {
		return nil, dicomError(o.frameError(err))
	}
	img := &RGB{W: frame.W, H: frame.H, Pix: frame.RGB}
	if frame.Grey != nil && frame.Bits > 8 && (o.Window != nil || o.Probe) {
		grey := frame.Grey
		img.samples = &samples{channels: 1, dx: 1, dy: frame.W, get: func(pixel, _ int) float32 { return float32(grey[pixel]) }}
		if o.Window != nil {
			return img, nil
		}
	}
	if frame.Grey != nil {
		img.plane = *borrow(frame.W * frame.H)
		for i, v := range frame.Grey {
			img.plane[i] = byte(v >> 8)
		}
	}
	return img, nil
}
