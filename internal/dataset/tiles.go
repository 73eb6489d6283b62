package dataset

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/tiling"
	"github.com/deepmed/anomaly/models"
)

// Tiled is an image of a data set that is cut into tiles: the tiles from First on, in the
// order of its grid.
type Tiled struct {
	First int
	Grid  tiling.Grid
}

// Tiled returns the images of a data set whose images are tiles, nil for others. Each tile
// is an image for Len and Image.
func (d *Dataset) Tiled() []Tiled { return d.tiled }

// Part returns the data set of some of the images, which shares memory and disk with d. It
// must not be used after d is closed, and need not be closed itself.
func (d *Dataset) Part(images []int) *Dataset {
	part := *d
	part.kept, part.tiled = make([]int, len(images)), nil
	for i, k := range images {
		part.kept[i] = d.kept[k]
	}
	return &part
}

// Count returns the number of images that could be read: Len unless they are tiles.
func (d *Dataset) Count() int {
	if d.tiled != nil {
		return len(d.tiled)
	}
	return d.Len()
}

// slots reserves places of a pixels for tiles.
type slots struct {
	mu   sync.Mutex
	next int
	most int
}

// reserve returns the first of n places, false if there are not as many.
func (s *slots) reserve(n int) (first int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next+n > s.most {
		return 0, false
	}
	first = s.next
	s.next += n
	return first, true
}

// loadTiles is the part of Load for images that are cut into tiles.
func (d *Dataset) loadTiles(ctx context.Context, src *Source, images []entry, most int, o Options) error {
	s := &slots{most: most}
	tooLarge := fmt.Errorf("%w: the tiles of %d images take more than %d bytes; use fewer images, or a longest side",
		ErrTooLarge, len(images), o.Limits.PreparedBytes)
	reasons := make([]string, len(images))
	tiled := make([]Tiled, len(images))
	var window windowFinder
	if o.KeepDepth && o.Images.Window == nil {
		o.Images.Probe, window.images = true, make([]probed, len(images))
	}
	var unpacked, largest, shallow atomic.Int64
	all := func(int) bool { return true }
	err := eachImage(ctx, images, o, all, func(i int, data []byte, options imagefile.Options, err error) error {
		if images[i].frame == 0 {
			if err := src.withinRatio(unpacked.Add(int64(len(data))), o.Limits); err != nil {
				return err
			}
		}
		if err != nil {
			reasons[i] = err.Error()
			return nil
		}
		begin := func(c imagefile.Cut) error {
			first, ok := s.reserve(c.Grid.Len())
			if !ok {
				return tooLarge
			}
			tiled[i] = Tiled{first, c.Grid}
			raise(&largest, int64(c.Largest))
			return nil
		}
		cut, err := imagefile.CutTiles(data, d.Layout.W, *o.Tiles, options, begin, func(k int, pix []byte) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return d.putTile(tiled[i].First+k, pix)
		})
		if err == nil {
			if cut.Shallow {
				shallow.Add(1)
			}
			window.add(i, cut.Deep, cut.Float, cut.Values)
		}
		if errors.Is(err, imagefile.ErrImage) || errors.Is(err, imagefile.ErrTooLarge) {
			reasons[i] = err.Error()
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	d.deep = largest.Load() > 0
	d.warnShallow(int(shallow.Load()), len(images))
	o.Images.Probe = false
	if found := window.find(); found != nil {
		d.Window, o.Images.Window = found, found
		d.Layout = o.Images.Layout(o.Size)
		if int64(s.next)*int64(d.Layout.Bytes()) > o.Limits.PreparedBytes {
			return tooLarge
		}
		if err := d.replacePixels(s.next, o); err != nil {
			return err
		}
		if err := d.cutAgain(ctx, images, tiled, reasons, o); err != nil {
			return err
		}
	} else if window.floating(reasons) {
		d.warnFloating()
	}
	if d.Window != nil {
		d.MaxValue = imagefile.DefaultMaxValue
	} else if d.MaxValue = o.Images.MaxValue; d.MaxValue == 0 {
		d.MaxValue = imagefile.MaxValueFor(int(largest.Load()))
		if d.MaxValue != imagefile.DefaultMaxValue {
			o.Images.MaxValue = d.MaxValue
			if err := d.cutAgain(ctx, images, tiled, reasons, o); err != nil {
				return err
			}
		}
	}
	for i, e := range images {
		if reasons[i] != "" {
			d.Skipped = append(d.Skipped, models.SkippedFile{Name: e.title(), Reason: reasons[i]})
			continue
		}
		first := len(d.kept)
		for k := range tiled[i].Grid.Len() {
			d.kept = append(d.kept, tiled[i].First+k)
		}
		d.tiled = append(d.tiled, Tiled{first, tiled[i].Grid})
	}
	if d.Len() == 0 {
		return d.noImages()
	}
	return nil
}

// putTile stores a tile. A tile that is stored on disk returns its memory to the pool.
func (d *Dataset) putTile(slot int, pix []byte) error {
	err := d.pixels.put(slot, pix)
	if slot >= len(d.pixels.memory) {
		imagefile.ReleaseTile(pix)
	}
	return err
}

// cutAgain cuts the images again with other options: a window, or the scale of
// o.Images.MaxValue, which has an effect on images of 16-bit samples only.
func (d *Dataset) cutAgain(ctx context.Context, images []entry, tiled []Tiled, reasons []string, o Options) error {
	readable := func(i int) bool { return reasons[i] == "" }
	return eachImage(ctx, images, o, readable, func(i int, data []byte, options imagefile.Options, err error) error {
		if err == nil {
			_, err = imagefile.CutTiles(data, d.Layout.W, *o.Tiles, options, nil, func(k int, pix []byte) error {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return d.putTile(tiled[i].First+k, pix)
			})
		}
		if err != nil {
			return fmt.Errorf("%s: %w", images[i].title(), err)
		}
		return nil
	})
}
