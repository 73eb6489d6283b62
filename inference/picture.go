package inference

import (
	"bytes"
	"context"
	"fmt"
	"image"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
	"github.com/disintegration/imaging"
)

// pictureGain is how much the difference is brightened in a Picture: a tenth
// of the full range shows as white.
const pictureGain = 10

// Picture draws an image as the network saw it, what the network made of it,
// and the absolute difference of the two brightened tenfold, side by side, as a
// PNG. It returns imagefile.ErrImage or imagefile.ErrTooLarge for an image that cannot be used.
func (d *Detector) Picture(ctx context.Context, data []byte, lim imagefile.Limits) ([]byte, error) {
	pixels, err := imagefile.Prepare(data, d.Side(), lim)
	if err != nil {
		return nil, err
	}
	rebuilt, err := d.Reconstruct(ctx, pixels)
	if err != nil {
		return nil, err
	}
	difference := make([]byte, len(pixels))
	for i := range pixels {
		v := int(pixels[i]) - int(rebuilt[i])
		difference[i] = byte(min(max(v, -v)*pictureGain, 255))
	}
	side := d.Side()
	sheet := imaging.New(3*side, side, image.Black)
	for i, p := range [][]byte{pixels, rebuilt, difference} {
		sheet = imaging.Paste(sheet, opaque(p, side), image.Pt(i*side, 0))
	}
	var out bytes.Buffer
	if err := imaging.Encode(&out, sheet, imaging.PNG); err != nil {
		return nil, fmt.Errorf("inference: drawing: %w", err)
	}
	return out.Bytes(), nil
}

// opaque makes an image of side×side×3 bytes.
func opaque(pixels []byte, side int) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, side, side))
	for i := range side * side {
		copy(img.Pix[4*i:4*i+3], pixels[3*i:3*i+3])
		img.Pix[4*i+3] = 255
	}
	return img
}

// quantize is the inverse of Normalize: CHW floats in 0…1 to HWC bytes, rounded.
func quantize(values []float32) []byte {
	plane := len(values) / models.InputChannels
	out := make([]byte, len(values))
	for i := range plane {
		for c := range models.InputChannels {
			out[models.InputChannels*i+c] = byte(min(max(values[c*plane+i], 0), 1)*255 + 0.5)
		}
	}
	return out
}
