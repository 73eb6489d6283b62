package imagefile

import (
	"errors"
	"fmt"
	"image"
	"strings"
)

// dicomJPEG decodes a baseline JPEG in a DICOM file.
func (o Options) dicomJPEG(data []byte, convert bool) (w, h, components int, samples []byte, err error) {
	img, err := decodeJPEG(data, o.Limits, func(m image.Image) (*RGB, error) { return jpegComponents(m, convert) })
	switch {
	case errors.Is(err, ErrTooLarge):
		return 0, 0, 0, nil, err
	case err != nil: // readDICOM adds ErrImage
		return 0, 0, 0, nil, errors.New(strings.TrimPrefix(err.Error(), ErrImage.Error()+": "))
	}
	if img.Pix == nil {
		return img.W, img.H, 1, img.plane, nil
	}
	return img.W, img.H, channels, img.Pix, nil
}

// jpegComponents returns the components of a decoded JPEG. Other than toRGB, it decides by
// convert whether they are YCbCr, not by the JPEG's own marks, which DICOM does not use.
func jpegComponents(m image.Image, convert bool) (*RGB, error) {
	b := m.Bounds()
	out := &RGB{W: b.Dx(), H: b.Dy()}
	switch m := m.(type) {
	case *image.Gray:
		return Options{}.toRGB(m)
	case *image.YCbCr:
		out.Pix = make([]byte, channels*out.W*out.H)
		if convert {
			return out, ycbcrToRGB(out, m)
		}
		for y := range out.H {
			for x := range out.W {
				d, c := out.Pix[channels*(y*out.W+x):][:channels], m.COffset(x, y)
				d[0], d[1], d[2] = m.Y[m.YOffset(x, y)], m.Cb[c], m.Cr[c]
			}
		}
	case *image.RGBA: // the decoder took the components for RGB
		out.Pix = make([]byte, channels*out.W*out.H)
		eachRow(out, m.Pix, m.Stride, 4, func(d, s []byte) { copy(d, s[:channels]) })
		if convert {
			for i := 0; i < len(out.Pix); i += channels {
				d := out.Pix[i : i+channels]
				yccRow(d, []byte{d[0]}, []byte{d[1]}, []byte{d[2]})
			}
		}
	default:
		return nil, fmt.Errorf("%w: a JPEG of four components in a DICOM file", ErrImage)
	}
	return out, nil
}
