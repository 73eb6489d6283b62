package imagefile

import (
	"errors"
	"fmt"

	"github.com/deepmed/anomaly/internal/dicom"
)

// MaxFrames is the maximum number of frames of a DICOM file.
const MaxFrames = 2000

// framesPixels times Limits.MaxPixels is the maximum number of pixels of all frames of a
// file.
const framesPixels = 16

// Frames are the images in a file: the frames of a DICOM file, or the one image of any other
// file, of which an animation or a document has the first frame or page.
type Frames struct {
	data    []byte
	options Options
	opened  *dicom.File // nil for other formats
}

// OpenFrames returns the images in a file, which are decoded with the options. It decodes
// none of them, and reads the attributes of a DICOM file once for all. A file of another
// format, damaged or not, has one image. The errors are ErrImage and ErrTooLarge, wrapped.
func OpenFrames(data []byte, o Options) (*Frames, error) {
	f := &Frames{data: data, options: o}
	o = o.orDefault()
	if format, _ := Sniff(data[:min(len(data), SniffBytes)]); format != DICOM || int64(len(data)) > o.MaxBytes {
		return f, nil
	}
	opened, err := openDICOM(data, o)
	if err != nil {
		return nil, err
	}
	f.opened = opened
	return f, nil
}

// Len returns the number of images, at least 1.
func (f *Frames) Len() int {
	if f.opened == nil {
		return 1
	}
	return f.opened.Frames()
}

// Data returns the content of the file.
func (f *Frames) Data() []byte { return f.data }

// Options returns the options with which Decode and the functions that prepare an image
// decode image i, from 0, of the same file.
func (f *Frames) Options(i int) Options {
	o := f.options
	o.frame, o.opened = i, f.opened
	return o
}

// openDICOM reads the attributes of a DICOM file.
func openDICOM(data []byte, o Options) (f *dicom.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			f, err = nil, fmt.Errorf("%w: damaged %s: %v", ErrImage, DICOM, p)
		}
	}()
	f, err = dicom.Open(data, dicom.Limits{Bytes: o.MaxBytes, Size: o.check, Frames: o.checkFrames})
	return f, dicomError(err)
}

// checkFrames returns an error if a file has too many frames.
func (l Limits) checkFrames(frames, w, h int) error {
	if frames > MaxFrames {
		return fmt.Errorf("%w: it has %d frames, at most %d are read: divide the file", ErrTooLarge, frames, MaxFrames)
	}
	if most := framesPixels * int64(l.MaxPixels); int64(frames)*int64(w)*int64(h) > most {
		return fmt.Errorf("%w: it has %d frames of %d×%d pixels, at most %d pixels are read: divide the file", ErrTooLarge, frames, w, h, most)
	}
	return nil
}

// dicomError adds ErrImage to an error of package dicom.
func dicomError(err error) error {
	if err == nil || errors.Is(err, ErrImage) || errors.Is(err, ErrTooLarge) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrImage, err)
}

// frameError adds the number of the frame to the error of decoding a frame of several.
func (o Options) frameError(err error) error {
	if n := o.opened.Frames(); err != nil && n > 1 {
		return fmt.Errorf("frame %d of %d: %w", o.frame+1, n, err)
	}
	return err
}
