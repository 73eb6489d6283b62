package evaluation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
)

// proLimit is the share of normal pixels up to which the per-region overlap is
// integrated.
const proLimit = 0.3

// PixelFigures tell how well an anomaly map shows where defects are, held against
// masks. Normal are the pixels of normal images and those of defective ones
// outside of the mask.
//
// Both are computed at the image's own size: each pixel has the value of that
// place of the map that it lies in.
type PixelFigures struct {
	// AUROC is the chance that a defective pixel has a higher value than a normal
	// one.
	AUROC float64 `json:"auroc"`
	// PRO is the per-region overlap (Bergmann et al., 2021): the share of a
	// connected region that is above a threshold, averaged over regions of any
	// size alike, integrated over the share of normal pixels above it from 0 to
	// 30 %, and divided by that; from 0 to 1.
	PRO float64 `json:"pro"`
	// Regions is the number of connected regions.
	Regions int `json:"regions"`
}

// cell is a part of a map's place: so many pixels of one region, or of none.
type cell struct {
	value  float32
	pixels int32
	region int32 // counted from 1; 0 for normal pixels
}

// pixelMap collects cells of several images.
type pixelMap struct {
	cells []cell
	sizes []int // of the regions, in pixels
}

// add takes the values of a square map that lies over an image with that mask;
// nil is for a normal image of width×height pixels.
func (p *pixelMap) add(values []float32, side, width, height int, m *mask) {
	if m == nil {
		columns, rows := spans(width, side), spans(height, side)
		for i, v := range values {
			if n := columns[i%side] * rows[i/side]; n > 0 {
				p.cells = append(p.cells, cell{v, int32(n), 0})
			}
		}
		return
	}
	first := int32(len(p.sizes))
	p.sizes = append(p.sizes, m.sizes...)
	// Pixels of the same place and region, which are few different ones.
	type part struct{ place, region int32 }
	counts := make(map[part]int32, len(values))
	for y := range height {
		for x := range width {
			counts[part{int32(place(y, height, side)*side + place(x, width, side)), m.region[y*width+x]}]++
		}
	}
	for at, n := range counts {
		region := at.region
		if region > 0 {
			region += first
		}
		p.cells = append(p.cells, cell{values[at.place], n, region})
	}
}

// place is which of side places along an image of that length the pixel's centre
// lies in.
func place(pixel, length, side int) int { return (2*pixel + 1) * side / (2 * length) }

// spans is how many pixels each place has.
func spans(length, side int) []int {
	out := make([]int, side)
	for pixel := range length {
		out[place(pixel, length, side)]++
	}
	return out
}

// sort puts the highest values first, in an order that is always the same, so
// that sums round alike.
func (p *pixelMap) sort() {
	slices.SortFunc(p.cells, func(a, b cell) int {
		return cmp.Or(cmp.Compare(b.value, a.value), cmp.Compare(a.region, b.region), cmp.Compare(a.pixels, b.pixels))
	})
}

// pixelFigures holds the maps of normal images against those of defective ones,
// both sorted. There must be a region, and a normal pixel.
func pixelFigures(good, bad *pixelMap) PixelFigures {
	normal, defective := 0.0, 0.0
	for _, p := range []*pixelMap{good, bad} {
		for _, c := range p.cells {
			if c.region == 0 {
				normal += float64(c.pixels)
			} else {
				defective += float64(c.pixels)
			}
		}
	}
	f := PixelFigures{Regions: len(bad.sizes)}
	var x, hits, overlap float64 // shares of the pixels and regions above the threshold
	var g, b int
	for g < len(good.cells) || b < len(bad.cells) {
		threshold := float32(0)
		if b == len(bad.cells) || g < len(good.cells) && good.cells[g].value > bad.cells[b].value {
			threshold = good.cells[g].value
		} else {
			threshold = bad.cells[b].value
		}
		var more, hitsMore, overlapMore float64
		take := func(p *pixelMap, at *int) {
			for ; *at < len(p.cells) && p.cells[*at].value == threshold; *at++ {
				c := p.cells[*at]
				if c.region == 0 {
					more += float64(c.pixels) / normal
					continue
				}
				hitsMore += float64(c.pixels) / defective
				overlapMore += float64(c.pixels) / float64(p.sizes[c.region-1]) / float64(len(p.sizes))
			}
		}
		take(good, &g)
		take(bad, &b)
		f.AUROC += more * (hits + hitsMore/2)
		if x < proLimit {
			// Up to the limit, on the line between the two points.
			within := min(more, proLimit-x)
			rise := overlapMore
			if more > 0 {
				rise *= within / more
			}
			f.PRO += within * (overlap + rise/2)
		}
		x, hits, overlap = x+more, hits+hitsMore, overlap+overlapMore
	}
	f.PRO /= proLimit
	return f
}

// collect computes the maps of images, as many at a time as threads; masks is nil
// for normal ones.
func collect(ctx context.Context, d *inference.Detector, files, masks []string, threads int) (*pixelMap, error) {
	parts := make([]pixelMap, len(files))
	err := eachFile(ctx, files, threads, func(ctx context.Context, i int, data []byte) error {
		img, err := imagefile.Decode(data, imagefile.DefaultLimits())
		if err != nil {
			return fmt.Errorf("%s: %w", files[i], err)
		}
		var m *mask
		if masks != nil {
			if m, err = readMask(masks[i], img.W, img.H); err != nil {
				return err
			}
		}
		values, _, err := d.Map(ctx, img.Resize(d.Side(), d.Side()).Pix)
		if err != nil {
			return fmt.Errorf("%s: %w", files[i], err)
		}
		parts[i].add(values, d.Side(), img.W, img.H, m)
		return nil
	})
	if err != nil {
		return nil, err
	}
	all := &pixelMap{}
	for i := range parts {
		all.join(&parts[i])
		parts[i] = pixelMap{}
	}
	all.sort()
	return all, nil
}

// join takes the other's cells, whose regions become further ones.
func (p *pixelMap) join(other *pixelMap) {
	first := int32(len(p.sizes))
	p.sizes = append(p.sizes, other.sizes...)
	for _, c := range other.cells {
		if c.region > 0 {
			c.region += first
		}
		p.cells = append(p.cells, c)
	}
}

// locate adds the pixels' figures of the defects that have masks. A model that
// gives no map has none.
func (r *Result) locate(ctx context.Context, d *inference.Detector, s *Set, threads int) error {
	if !s.Masked() {
		return nil
	}
	good, err := collect(ctx, d, s.Good, nil, threads)
	if errors.Is(err, inference.ErrNoMap) {
		return nil
	}
	if err != nil {
		return err
	}
	together := &pixelMap{}
	for i, defect := range s.Defects {
		if defect.Masks == nil {
			continue
		}
		bad, err := collect(ctx, d, defect.Files, defect.Masks, threads)
		if err != nil {
			return err
		}
		if len(bad.sizes) == 0 {
			return fmt.Errorf("%w: those of %s show no defect", ErrMask, defect.Name)
		}
		f := pixelFigures(good, bad)
		r.Defects[i].Pixels = &f
		together.join(bad)
	}
	together.sort()
	f := pixelFigures(good, together)
	r.Together.Pixels = &f
	return nil
}
