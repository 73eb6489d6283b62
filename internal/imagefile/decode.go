package imagefile

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"

	"golang.org/x/image/bmp"
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
	// progressive JPEG up to 20, and the RGB result 3 more.
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

// Decode decodes a PNG, JPEG, GIF, BMP, TIFF or WebP image, recognized by its content.
// Of an animation or a document it decodes the first frame or page. The result is that
// of Pillow's Image.open(f).convert("RGB"): alpha and a palette's transparency are
// dropped without compositing, CMYK is converted without a colour profile, a TIFF's
// orientation is applied, and the EXIF orientation is not.
//
// There is one exception: 16-bit grey is scaled to 8 bits by dropping the low byte.
// Pillow clips values above 255 to white. 16-bit colour is scaled in both.
//
// Decode compares the dimensions in the header with lim and with the file's length
// before it allocates memory for the pixels. The errors are ErrImage and ErrTooLarge,
// wrapped.
func Decode(data []byte, lim Limits) (*RGB, error) {
	img, err := decode(data, lim)
	if err != nil {
		return nil, err
	}
	return img.spread(), nil
}

// decode is Decode without spread: the Pix of a grey image is nil.
func decode(data []byte, lim Limits) (img *RGB, err error) {
	lim = lim.OrDefault()
	if int64(len(data)) > lim.MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, len(data), lim.MaxBytes)
	}
	c := sniff(data)
	if c == nil {
		return nil, fmt.Errorf("%w: expected PNG, JPEG, GIF, BMP, TIFF or WebP, found %s", ErrImage, describe(data))
	}
	// A panic of a decoder means that the image is damaged. All work below is done in
	// this goroutine, so recover catches it.
	defer func() {
		if p := recover(); p != nil {
			img, err = nil, fmt.Errorf("%w: damaged %s: %v", ErrImage, c.name, p)
		}
	}()
	img, err = c.read(data, lim)
	if err == nil || errors.Is(err, ErrImage) || errors.Is(err, ErrTooLarge) {
		return img, err
	}
	return nil, fmt.Errorf("%w: damaged or unsupported %s: %w", ErrImage, c.name, err)
}

// codec is an image format.
type codec struct {
	name  string
	magic []string // first bytes; '?' matches any byte
	read  func(data []byte, lim Limits) (*RGB, error)
}

// codecs are called directly. image.Decode would also pass untrusted bytes to formats
// that other packages register.
var codecs = []codec{
	{"PNG", []string{"\x89PNG\r\n\x1a\n"}, readPNG},
	{"JPEG", []string{"\xff\xd8\xff"}, readJPEG},
	{"GIF", []string{"GIF87a", "GIF89a"}, readGIF},
	{"BMP", []string{"BM????\x00\x00\x00\x00"}, readBMP},
	{"TIFF", []string{"II*\x00", "MM\x00*"}, readTIFF},
	{"WebP", []string{"RIFF????WEBP"}, readWebP},
}

// sniff returns the codec of an image file, or nil.
func sniff(data []byte) *codec {
	for i := range codecs {
		for _, m := range codecs[i].magic {
			if matches(data, m) {
				return &codecs[i]
			}
		}
	}
	return nil
}

func matches(data []byte, magic string) bool {
	if len(data) < len(magic) {
		return false
	}
	for i := range len(magic) {
		if magic[i] != '?' && magic[i] != data[i] {
			return false
		}
	}
	return true
}

// describe describes bytes that are not an image, for an error.
func describe(data []byte) string {
	if len(data) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%d bytes that begin with %q", len(data), data[:min(len(data), 8)])
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

func readPNG(data []byte, lim Limits) (*RGB, error) {
	return decodeWith(data, lim,
		func(r *bytes.Reader) (image.Config, error) { return png.DecodeConfig(r) },
		func(c image.Config) error { return plausiblePNG(data, c) },
		func(r *bytes.Reader) (image.Image, error) { return png.Decode(r) },
		toRGB)
}

func readJPEG(data []byte, lim Limits) (*RGB, error) {
	return decodeWith(data, lim,
		func(r *bytes.Reader) (image.Config, error) { return jpeg.DecodeConfig(r) },
		func(c image.Config) error { return plausibleJPEG(data, c) },
		func(r *bytes.Reader) (image.Image, error) { return jpeg.Decode(r) },
		toRGB)
}

func readBMP(data []byte, lim Limits) (*RGB, error) {
	return decodeWith(data, lim,
		func(r *bytes.Reader) (image.Config, error) { return bmp.DecodeConfig(r) },
		func(c image.Config) error { return plausibleBMP(data, c) },
		func(r *bytes.Reader) (image.Image, error) { return bmp.Decode(r) },
		toRGB)
}

func readTIFF(data []byte, lim Limits) (*RGB, error) {
	dir, err := readTIFFDirectory(data)
	if err != nil {
		return nil, err
	}
	img, err := decodeWith(data, lim,
		func(r *bytes.Reader) (image.Config, error) { return tiff.DecodeConfig(r) },
		func(c image.Config) error { return dir.plausible(len(data), c, lim) },
		func(r *bytes.Reader) (image.Image, error) { return tiff.Decode(r) },
		toRGB)
	if err != nil {
		return nil, err
	}
	img.spread()
	img.plane = nil // the changes below are to Pix
	if dir.inverted() {
		for i, v := range img.Pix {
			img.Pix[i] = 255 - v
		}
	}
	return img.oriented(dir.orientation), nil
}

func readWebP(data []byte, lim Limits) (*RGB, error) {
	f, animated, err := firstWebPFrame(data)
	if err != nil {
		return nil, err
	}
	if !animated {
		return readStillWebP(data, lim)
	}
	if err := lim.check(f.canvas.Width, f.canvas.Height); err != nil {
		return nil, err
	}
	if err := plausibleWebP(f.still, f.canvas); err != nil {
		return nil, err
	}
	picture, err := readStillWebP(f.still, lim)
	if err != nil {
		return nil, err
	}
	if picture.W != f.frame.Width || picture.H != f.frame.Height {
		return nil, fmt.Errorf("%w: a frame of an animated WebP has %d×%d pixels in its header and %d×%d in its content",
			ErrImage, f.frame.Width, f.frame.Height, picture.W, picture.H)
	}
	return f.onCanvas(picture), nil
}

func readStillWebP(data []byte, lim Limits) (*RGB, error) {
	return decodeWith(data, lim,
		func(r *bytes.Reader) (image.Config, error) { return webp.DecodeConfig(r) },
		func(c image.Config) error { return plausibleWebP(data, c) },
		func(r *bytes.Reader) (image.Image, error) { return webp.Decode(r) },
		webpToRGB)
}
