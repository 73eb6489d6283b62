package dataset

import (
	"context"
	"errors"
	"math"
	"slices"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

// The window of a data set of deep images spans these shares of their sample values, and a
// margin beyond them, as a share of the span, for what later images have. See
// docs/geometry.md for the measurements.
const (
	lowestShare, highestShare = 0.001, 0.999
	windowMargin              = 0.1
)

// probed is what was found out about an image.
type probed struct {
	read, deep, float bool
	values            []float32
}

// windowFinder chooses the window of a data set. The zero value chooses none.
type windowFinder struct{ images []probed }

// add adds a prepared image. It may be called concurrently for different images.
func (f *windowFinder) add(i int, p *imagefile.Prepared) {
	if f.images != nil {
		f.images[i] = probed{read: true, deep: p.Deep, float: p.Float, values: p.Values}
	}
}

// floating makes the images of floating-point samples unreadable, for which there must be a
// window, and reports whether there are any. It sets the reasons.
func (f *windowFinder) floating(reasons []string) (found bool) {
	for i, p := range f.images {
		if p.float {
			found = true
			reasons[i] = "it has floating-point samples, which need a window of sample values"
		}
	}
	return found
}

// find returns the window if every image that could be read has more than 8 bits per sample,
// else nil. It returns nil, too, if the values are too large or too close for a window.
func (f *windowFinder) find() *models.Window {
	var all []float32
	for _, p := range f.images {
		if p.read && !p.deep {
			return nil
		}
		all = append(all, p.values...)
	}
	if len(all) == 0 {
		return nil
	}
	slices.Sort(all)
	at := func(share float64) float64 { return float64(all[int(share*float64(len(all)-1)+0.5)]) }
	low, high := at(lowestShare), at(highestShare)
	least, most := float64(all[0]), float64(all[len(all)-1])
	margin := windowMargin * (high - low)
	if low, high = low-margin, high+margin; high <= low { // all values are equal
		half := max(0.5, math.Abs(least)/1000) // more than the distance of two float32
		low, high = least-half, most+half
	}
	w := models.Window{low, high}
	if least >= 0 {
		w[0] = max(w[0], 0)
	}
	if w.Check() != nil {
		return nil
	}
	return &w
}

// deepen prepares all images again with a window.
func (d *Dataset) deepen(ctx context.Context, images []entry, reasons []string, w *models.Window, o Options) error {
	d.Window, o.Images.Window = w, w
	d.Layout = o.Images.Layout(o.Size)
	if err := d.checkBytes(len(images), o.Limits); err != nil {
		return err
	}
	pixels, err := newPixels(len(images), d.Layout.Bytes(), o.Limits.MemoryBytes, o.TempDir)
	if err != nil {
		return err
	}
	if err := d.pixels.Close(); err != nil {
		return errors.Join(err, pixels.Close())
	}
	d.pixels = pixels
	readable := make([]bool, len(images))
	for i, reason := range reasons {
		readable[i] = reason == ""
	}
	return d.again(ctx, images, readable, o)
}
