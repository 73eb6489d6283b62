package imagefile

import (
	"fmt"
	"math/bits"

	"github.com/deepmed/anomaly/internal/dicom"
	"github.com/deepmed/anomaly/models"
)

// DefaultMaxValue is the value of a 16-bit sample that becomes 255 of 8 bits where
// Options has none.
const DefaultMaxValue = 65535

// Options are the limits of an untrusted image and the choices of how its pixels become
// RGB of 8 bits. The zero value means the default limits, no EXIF orientation, and a
// scale of 65535.
type Options struct {
	Limits
	// Upright applies the orientation in EXIF or XMP, as Pillow's
	// ImageOps.exif_transpose does. A TIFF's own orientation is always applied.
	Upright bool
	// MaxValue is the value of a 16-bit sample that becomes 255; larger ones become
	// 255, too. A value outside 1 to 65535 means 65535.
	MaxValue int

	// Fit is how images are brought to the input's aspect ratio; empty means
	// models.FitSquash.
	Fit models.Fit
	// Window is the range of sample values that becomes 0…1, of all images and without a
	// conversion to 8 bits; nil means 8 bits.
	Window *models.Window
	// Region is the part of images that is judged; nil means all.
	Region *models.Region
	// Probe also returns values of images of more than 8 bits per sample, and accepts
	// floating-point samples, whose pixels are black.
	Probe bool

	// Original returns the size of Prepared.Original, which is nil if Original is nil.
	Original func(w, h int) models.Size

	// TileRow is called with each row of an image that is cut into tiles, inside of the
	// region or not: red, green and blue of each pixel, as in a prepared image. It may be
	// nil.
	TileRow func(y int, row []byte)

	// mask is the mask of Region.
	mask []bool
	// inverted is set for a TIFF whose grey counts from white. The library subtracts
	// its samples from 65535, whatever their scale.
	inverted bool
	// opened is the DICOM file if it was opened before, and frame the number of its frame
	// to decode, from 0.
	opened *dicom.File
	frame  int
}

// OptionsFor returns the options of a model's preprocessing, which may be nil.
func OptionsFor(p *models.Preprocessing, lim Limits) Options {
	o := Options{Limits: lim}
	if p != nil {
		o.Upright, o.MaxValue = p.Upright(), p.MaxValue
		o.Fit, o.Window = p.Fit, p.Window
		o = o.WithRegion(p.Region)
	}
	return o
}

// WithRegion returns the options with a region, which must be valid or nil.
func (o Options) WithRegion(r *models.Region) Options {
	o.Region, o.mask = r, nil
	if r != nil {
		o.mask, _ = r.Mask() // validated when it was read
	}
	return o
}

// Layout returns the layout of images that are prepared for an input of that size.
func (o Options) Layout(size models.Size) Layout {
	return Layout{Size: size, Deep: o.Window != nil, Masked: o.Region != nil || o.Fit == models.FitPad}
}

// scale returns the 8-bit value of every 16-bit sample: v·256/(MaxValue+1), rounded
// down and at most 255. For 65535, that is the high byte. It returns nil for 65535.
func (o Options) scale() *[1 << 16]byte {
	if o.MaxValue < 1 || o.MaxValue >= DefaultMaxValue {
		return nil
	}
	t := new([1 << 16]byte)
	for v := range t {
		t[v] = byte(min(v*256/(o.MaxValue+1), 255))
	}
	return t
}

// MaxValueFor returns the scale of images whose largest 16-bit sample is largest: the
// largest value of 8, 10, 12, 14 or 16 bits, which are the depths of cameras. It is
// DefaultMaxValue for 0, which means that no image has 16-bit samples.
func MaxValueFor(largest int) int {
	if largest <= 0 {
		return DefaultMaxValue
	}
	n := max(8, bits.Len(uint(largest)))
	return 1<<min(n+n%2, 16) - 1
}

// orDefault completes o with the default limits.
func (o Options) orDefault() Options {
	o.Limits = o.Limits.OrDefault()
	return o
}

// notRead returns ErrImage, wrapped, for an image of a kind that is not read.
func notRead(kind string) error {
	return fmt.Errorf("%w: %s is not read: export it as 8- or 16-bit PNG or TIFF", ErrImage, kind)
}
