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

// pictureGain multiplies the difference in a Picture: a tenth of the full range is
// white.
const pictureGain = 10

// Picture returns a PNG of the network's input, its reconstruction, and ten times
// their absolute difference, side by side, for image i, from 0, of a file. The errors are
// ErrImage and ErrImageTooLarge, wrapped.
func (d *Detector) Picture(ctx context.Context, f *imagefile.Frames, i int) ([]byte, error) {
	prepared, err := d.pictured(ctx, f, i)
	if err != nil {
		return nil, err
	}
	reconstruction, err := d.Reconstruct(ctx, prepared)
	if err != nil {
		return nil, err
	}
	pixels, mask := d.Layout().Colours(prepared), d.Layout().Mask(prepared)
	difference := make([]byte, len(pixels))
	for i := range pixels {
		if mask != nil && mask[i/models.InputChannels] == 0 {
			continue
		}
		v := int(pixels[i]) - int(reconstruction[i])
		difference[i] = byte(min(max(v, -v)*pictureGain, 255))
	}
	size := d.Size()
	sheet := imaging.New(3*size.W, size.H, image.Black)
	for i, p := range [][]byte{pixels, reconstruction, difference} {
		sheet = imaging.Paste(sheet, opaque(p, size), image.Pt(i*size.W, 0))
	}
	var out bytes.Buffer
	if err := imaging.Encode(&out, sheet, imaging.PNG); err != nil {
		return nil, fmt.Errorf("inference: draw the picture: %w", err)
	}
	return out.Bytes(), nil
}

// pictured returns the network's input that a Picture shows: the whole image, or the tile
// with the highest anomaly score.
func (d *Detector) pictured(ctx context.Context, f *imagefile.Frames, i int) ([]byte, error) {
	if !d.Tiled() {
		return imagefile.Prepare(f.Data(), d.Size(), f.Options(i))
	}
	_, image, err := d.judgeTiles(ctx, f, i, always(scoreSession), 0, true)
	if err != nil {
		return nil, err
	}
	return image.worst, nil
}

// opaque returns the pixels of an image without transparency.
func opaque(pixels []byte, size models.Size) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, size.W, size.H))
	for i := range size.Area() {
		copy(img.Pix[4*i:4*i+3], pixels[3*i:3*i+3])
		img.Pix[4*i+3] = 255
	}
	return img
}

// quantize inverts imagefile.Normalize: it converts planes of floats in 0…1 to rounded
// bytes, pixel by pixel.
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
