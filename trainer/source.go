package trainer

import (
	"io"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/optimizer"
)

// Source is the files of a data set. OpenFolder and OpenZip return one; Train reads it.
type Source = dataset.Source

// Limits bound the files, bytes and memory of a data set.
type Limits = dataset.Limits

// Errors that Train returns, wrapped, besides those declared elsewhere in this package.
var (
	// ErrNoImages is returned when a data set has no image, or none that can be read.
	ErrNoImages = dataset.ErrNoImages
	// ErrNotZip is returned when a zip cannot be read.
	ErrNotZip = dataset.ErrNotZip
	// ErrDatasetTooLarge is returned when a data set exceeds one of its Limits.
	ErrDatasetTooLarge = dataset.ErrTooLarge
	// ErrLayout is returned when the folders of a data set show that it has images of
	// defects.
	ErrLayout = dataset.ErrLayout
	// ErrStorage is returned when the prepared images cannot be stored.
	ErrStorage = dataset.ErrStorage
	// ErrDiverged is returned when the loss of a training is no longer finite.
	ErrDiverged = optimizer.ErrDiverged
)

// DefaultLimits returns limits that allow 10,000 images of 10 MB.
func DefaultLimits() Limits { return dataset.DefaultLimits() }

// OpenFolder returns the images and YAML files in a folder and its subfolders. It
// returns ErrDatasetTooLarge when there are too many.
func OpenFolder(dir string, lim Limits) (*Source, error) { return dataset.OpenFolder(dir, lim) }

// OpenZip returns the images and YAML files of a zip of size bytes, which must stay
// readable while the source is used. It returns ErrNotZip and ErrDatasetTooLarge.
func OpenZip(r io.ReaderAt, size int64, lim Limits) (*Source, error) {
	return dataset.OpenZip(r, size, lim)
}
