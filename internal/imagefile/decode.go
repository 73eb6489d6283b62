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

// Errors of reading an image. Each is wrapped with one sentence's worth of what
// was expected and what was found.
var (
	// ErrImage is returned when bytes are not an image of a format read here,
	// or are a damaged one.
	ErrImage = errors.New("not a readable image")
	// ErrTooLarge is returned when an image has more bytes or more pixels
	// than allowed.
	ErrTooLarge = errors.New("the image is too large")
)

// maxDimension bounds the width and the height of an image, in pixels. It is
// the most that JPEG and GIF can say; a longer TIFF or PNG would make the
// resize's coefficients as large as the image.
const maxDimension = 65535

// RGB is an image of 8 bits a channel without alpha.
type RGB struct {
	// W and H are the width and height in pixels, both at least 1.
	W, H int
	// Pix holds red, green and blue of every pixel, one byte each, rows from
	// top to bottom without padding: 3·W·H bytes.
	Pix []byte

	// plane holds the one value of each pixel of a grey image, W·H bytes; nil for
	// images of colour. Pix may be missing then, until spread makes it.
	plane []byte
}

// spread makes Pix of a grey image's plane.
func (img *RGB) spread() *RGB {
	if img.Pix == nil {
		img.Pix = *borrow(3 * len(img.plane))
		repeat(img.Pix, img.plane)
	}
	return img
}

func newRGB(w, h int) *RGB { return &RGB{W: w, H: h, Pix: make([]byte, 3*w*h)} }

// Limits bounds what an untrusted image may cost. A field of 0 or less
// means the default.
type Limits struct {
	// MaxBytes bounds the encoded image, in bytes.
	MaxBytes int64
	// MaxPixels bounds width times height. A decoder needs 1 to 8 bytes a
	// pixel, a progressive JPEG up to 20, and the RGB made of it 3 more.
	MaxPixels int
}

// DefaultLimits are 32 MiB of encoded image and 64 megapixels.
func DefaultLimits() Limits {
	return Limits{MaxBytes: 32 << 20, MaxPixels: 64_000_000}
}

// OrDefault returns the limits with the default in place of each field of 0 or less.
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

// check refuses an image by its dimensions in pixels.
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

// Decode reads a PNG, JPEG, GIF, BMP, TIFF or WebP image (the first frame of an
// animation, the first page), told apart by content, into what Pillow's
// Image.open(f).convert("RGB") gives: alpha is dropped and not composited, a
// palette's transparency likewise, CMYK is converted as Pillow does it without
// a colour profile, and the EXIF orientation is not applied (a TIFF's own
// orientation is, as in Pillow).
//
// There is one exception: 16-bit grey is scaled to 8 bits by dropping the low
// byte, where Pillow cuts every value above 255 to white. Colour of 16 bits is
// scaled the same way by both.
//
// The dimensions in the header are held against lim before anything of the
// image's size is allocated, and so is what the file's length can hold at all.
// It returns ErrImage or ErrTooLarge, wrapped.
func Decode(data []byte, lim Limits) (*RGB, error) {
	img, err := decode(data, lim)
	if err != nil {
		return nil, err
	}
	return img.spread(), nil
}

// decode is Decode that leaves grey images as planes.
func decode(data []byte, lim Limits) (img *RGB, err error) {
	lim = lim.OrDefault()
	if int64(len(data)) > lim.MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, len(data), lim.MaxBytes)
	}
	c := sniff(data)
	if c == nil {
		return nil, fmt.Errorf("%w: expected PNG, JPEG, GIF, BMP, TIFF or WebP, found %s", ErrImage, describe(data))
	}
	// A decoder's panic on a crafted image is that image's fault: all of the
	// work below is done in this goroutine, so that it ends here.
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

// codec is an image format: how it is recognised and read.
type codec struct {
	name  string
	magic []string // '?' stands for any byte
	read  func(data []byte, lim Limits) (*RGB, error)
}

// codecs are called directly and not through image.Decode: what other packages
// register there must not widen what untrusted bytes can reach.
var codecs = []codec{
	{"PNG", []string{"\x89PNG\r\n\x1a\n"}, readPNG},
	{"JPEG", []string{"\xff\xd8\xff"}, readJPEG},
	{"GIF", []string{"GIF87a", "GIF89a"}, readGIF},
	{"BMP", []string{"BM????\x00\x00\x00\x00"}, readBMP},
	{"TIFF", []string{"II*\x00", "MM\x00*"}, readTIFF},
	{"WebP", []string{"RIFF????WEBP"}, readWebP},
}

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

// describe names the first bytes of something that is no image.
func describe(data []byte) string {
	if len(data) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%d bytes that begin with %q", len(data), data[:min(len(data), 8)])
}

// decodeWith decodes by one of the library's decoders, after their header, and
// what the file's length can hold, have been checked.
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
		return nil, fmt.Errorf("%w: the header says %d×%d pixels, the content is %d×%d",
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
	img.plane = nil // what follows is done with the pixels
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
		return nil, fmt.Errorf("%w: a frame of an animated WebP says %d×%d pixels and has %d×%d",
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
