package inference

import (
	"errors"

	"github.com/deepmed/anomaly/internal/imagefile"
)

// ImageLimits bound the cost of an untrusted image. A field of 0 or less means the
// default.
type ImageLimits = imagefile.Limits

// DefaultImageLimits returns the default limits: 32 MiB of encoded image and
// 64 megapixels.
func DefaultImageLimits() ImageLimits { return imagefile.DefaultLimits() }

// Errors of reading an image.
var (
	// ErrImage is returned when bytes are not an image in a supported format, or
	// the image is damaged.
	ErrImage = imagefile.ErrImage
	// ErrImageTooLarge is returned when an image exceeds the limits.
	ErrImageTooLarge = imagefile.ErrTooLarge
)

// IsImageError reports whether an error is one of an image or its verdict, so that other
// images can be judged: ErrImage, ErrImageTooLarge, ErrGrid, ErrMeasure or ErrNotFinite.
func IsImageError(err error) bool {
	for _, known := range []error{ErrImage, ErrImageTooLarge, ErrGrid, ErrMeasure, ErrNotFinite} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}
