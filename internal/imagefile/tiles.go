package imagefile

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/tiling"
	"github.com/deepmed/anomaly/models"
)

// Cut describes an image that is cut into tiles.
type Cut struct {
	// W and H are the width and height of the original image, and Largest its largest
	// sample, as in Prepared.
	W, H, Largest int
	// Grid is the plan of the tiles. Its size is that of the image after it was scaled.
	Grid tiling.Grid
}

// CutTiles decodes an untrusted image and calls each with its tiles of side×side pixels, in
// their order: side·side·3 bytes, rows of red, green and blue, which belong to the callee.
// begin is called before the first tile; it may be nil. CutTiles stops at the first error
// of begin or each and returns it.
//
// Unless the image is scaled, no more of it than one row of tiles is kept in memory as
// pixels; see openRows. Scaled, it is the image that Resize returns. The other errors are
// ErrImage, ErrTooLarge and ErrSide, wrapped.
func CutTiles(data []byte, side int, t models.Tiles, o Options, begin func(Cut) error, each func(i int, pix []byte) error) (c Cut, err error) {
	if side < 1 || side > models.MaxImageSize {
		return c, fmt.Errorf("%w: %d pixels, expected 1 to %d", ErrSide, side, models.MaxImageSize)
	}
	r, err := openRows(data, o)
	if err != nil {
		return c, err
	}
	defer func() {
		if r.release != nil {
			r.release()
		}
	}()
	c = Cut{W: r.w, H: r.h, Largest: r.largest}
	w, h := tiling.Scaled(r.w, r.h, t.LongestSide)
	if limit := o.orDefault().MaxPixels; w > limit/h {
		return c, fmt.Errorf("%w: it is scaled to %d×%d pixels, at most %d are judged; train with a shorter longest side", ErrTooLarge, w, h, limit)
	}
	if n := tiling.Count(w, h, side, t.Overlap); n > tiling.MaxTiles {
		return c, fmt.Errorf("%w: its %d×%d pixels are %d tiles of %d pixels, at most %d are judged; train with larger tiles or a longest side",
			ErrTooLarge, w, h, n, side, tiling.MaxTiles)
	}
	c.Grid = tiling.New(w, h, side, t.Overlap)
	if begin != nil {
		if err := begin(c); err != nil {
			return c, err
		}
	}
	if w != r.w || h != r.h {
		scaled, err := r.resized(w, h)
		if err != nil {
			return c, err
		}
		r = scaled
	}
	if err := r.cut(c.Grid, each); err != nil {
		return c, err
	}
	return c, nil
}

// read is next for a decoder that panics if the image is damaged.
func (r *rows) read(dst []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: damaged: %v", ErrImage, p)
		}
	}()
	return r.next(dst)
}

// resized reads all rows and returns those of the image at w×h pixels.
func (r *rows) resized(w, h int) (*rows, error) {
	img := &RGB{W: r.w, H: r.h, Pix: *borrow(3 * r.w * r.h), largest: r.largest}
	defer giveBack(&img.Pix)
	for y := range r.h {
		if err := r.read(img.Pix[3*y*r.w : 3*(y+1)*r.w]); err != nil {
			return nil, err
		}
	}
	if r.end != nil {
		if err := r.end(); err != nil {
			return nil, err
		}
	}
	if r.release != nil {
		r.release()
		r.release = nil
	}
	out := &RGB{W: w, H: h, Pix: *borrow(3 * w * h), largest: r.largest}
	img.resizeTo(out.Pix, w, h)
	return out.rows(), nil
}

// cut reads the rows and calls f with the tiles of the grid.
func (r *rows) cut(g tiling.Grid, f func(i int, pix []byte) error) error {
	high := min(g.Side, r.h)
	stride := 3 * r.w
	band := borrow(high * stride) // the rows of the current tiles
	defer giveBack(band)
	first, end := 0, 0 // rows in the band
	for row, top := range g.Ys {
		kept := end - top // rows of the tiles before
		if kept > 0 {
			copy(*band, (*band)[(top-first)*stride:(end-first)*stride])
		}
		for ; end < top; end++ { // only if tiles do not touch
			if err := r.read((*band)[:stride]); err != nil {
				return err
			}
		}
		first = top
		for ; end < top+high; end++ {
			if err := r.read((*band)[(end-top)*stride : (end-top+1)*stride]); err != nil {
				return err
			}
		}
		if row == len(g.Ys)-1 && r.end != nil {
			if err := r.end(); err != nil {
				return err
			}
		}
		for column, left := range g.Xs {
			if err := f(row*len(g.Xs)+column, tile(*band, r.w, high, left, g.Side)); err != nil {
				return err
			}
		}
	}
	return nil
}

// tile returns the pixels of a tile whose left edge is at a column of a band of w×high
// pixels. What is beyond the band are its last pixels.
func tile(band []byte, w, high, left, side int) []byte {
	pix := *borrow(3 * side * side)
	wide := min(side, w-left)
	for y := range side {
		to := pix[3*y*side : 3*(y+1)*side]
		copy(to, band[3*(min(y, high-1)*w+left):][:3*wide])
		for x := wide; x < side; x++ {
			copy(to[3*x:3*x+3], to[3*(wide-1):3*wide])
		}
	}
	return pix
}

// ReleaseTile returns the memory of a tile of CutTiles to the pool. Nobody may use the tile
// afterwards.
func ReleaseTile(pix []byte) { giveBack(&pix) }
