package evaluation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

// proLimit is the false positive rate of pixels up to which the per-region overlap is
// integrated, as in MVTec AD.
const proLimit = 0.3

// PixelFigures are localization metrics: they compare anomaly maps with ground-truth
// masks. Normal pixels are all pixels of normal images, and the pixels of defective
// images outside of the mask. The metrics are computed at the size of the image, where
// each pixel has the value of the map's element at the pixel's centre.
type PixelFigures struct {
	// AUROC is the probability that a defective pixel has a higher value than a normal
	// pixel.
	AUROC float64 `json:"auroc"`
	// PRO is the normalized area under the per-region overlap curve (Bergmann et al.,
	// 2021): the share of a connected region above a threshold, averaged over regions
	// with equal weights, integrated over the false positive rate of pixels from 0 to
	// 0.3 and divided by 0.3.
	PRO float64 `json:"pro"`
	// Regions is the number of connected regions.
	Regions int `json:"regions"`
}

// cell is a group of pixels with the same value: the pixels of one region, or of none,
// in one element of a map.
type cell struct {
	value  float32
	pixels int32
	region int32 // counted from 1; 0 for normal pixels
}

// pixelMap is the list of the cells of several images.
type pixelMap struct {
	cells []cell
	sizes []int // number of pixels of each region
}

// add adds the values of an anomaly map of an image in that frame. m is nil for a normal
// image. Pixels that a crop cuts off have the value 0.
func (p *pixelMap) add(values []float32, f models.Frame, m *mask) {
	cropped := f.From.Size() != f.Whole
	if m == nil && !cropped {
		columns, rows := spans(f.Whole.W, f.To.X0, f.To.Size().W, f.Input.W), spans(f.Whole.H, f.To.Y0, f.To.Size().H, f.Input.H)
		for i, v := range values {
			if n := columns[i%f.Input.W] * rows[i/f.Input.W]; n > 0 {
				p.cells = append(p.cells, cell{v, int32(n), 0})
			}
		}
		return
	}
	first := int32(len(p.sizes))
	if m != nil {
		p.sizes = append(p.sizes, m.sizes...)
	}
	// Pixels of the same element and region are combined.
	type part struct{ element, region int32 }
	const none = -1 // the element of pixels that are cut off
	counts := make(map[part]int32, len(values))
	for y := range f.Whole.H {
		for x := range f.Whole.W {
			of := part{element: none}
			if at, ok := f.At(x, y); ok {
				of.element = int32(at)
			}
			if m != nil {
				of.region = m.region[y*f.Whole.W+x]
			}
			counts[of]++
		}
	}
	for at, n := range counts {
		region := at.region
		if region > 0 {
			region += first
		}
		value := float32(0)
		if at.element != none {
			value = values[at.element]
		}
		p.cells = append(p.cells, cell{value, n, region})
	}
}

// spans returns the number of pixels along a side of each of n elements, of which the side's
// length pixels take `to` elements from the first on.
func spans(length, first, to, n int) []int {
	out := make([]int, n)
	for pixel := range length {
		out[first+(2*pixel+1)*to/(2*length)]++
	}
	return out
}

// sort sorts cells by descending value. Ties have a fixed order, so that sums are
// rounded deterministically.
func (p *pixelMap) sort() {
	slices.SortFunc(p.cells, func(a, b cell) int {
		return cmp.Or(cmp.Compare(b.value, a.value), cmp.Compare(a.region, b.region), cmp.Compare(a.pixels, b.pixels))
	})
}

// pixelFigures computes the metrics from the maps of normal and of defective images, both
// sorted. There must be at least one region and one normal pixel.
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
	var x, hits, overlap float64 // false positive rate, recall and overlap at the threshold
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
			// Integrate up to the limit, with linear interpolation between points.
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

// computeMaps computes the anomaly maps of images, at most threads of them concurrently.
// masks is nil for normal images.
func computeMaps(ctx context.Context, d *inference.Detector, files, masks []string, threads int) (*pixelMap, error) {
	parts := make([]pixelMap, len(files))
	err := eachFile(ctx, files, threads, func(ctx context.Context, i int, data []byte, err error) error {
		var frames *imagefile.Frames
		if err == nil {
			frames, err = d.Open(data, imagefile.DefaultLimits())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", files[i], err)
		}
		for k := range frames.Len() {
			values, frame, err := d.ImageMap(ctx, frames, k)
			if err != nil {
				return fmt.Errorf("%s: %w", files[i], err)
			}
			var m *mask
			if masks != nil {
				if m, err = readMask(masks[i], frame.Whole.W, frame.Whole.H, d.ImageOptions(imagefile.DefaultLimits())); err != nil {
					return err
				}
			}
			parts[i].add(values, frame, m)
		}
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

// join adds the cells and regions of other.
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

// addPixelFigures adds the localization metrics of the defects with masks. A model
// without an anomaly map has none.
func (r *Result) addPixelFigures(ctx context.Context, d *inference.Detector, s *Set, threads int) error {
	if !s.Masked() {
		return nil
	}
	good, err := computeMaps(ctx, d, s.Good, nil, threads)
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
		bad, err := computeMaps(ctx, d, defect.Files, defect.Masks, threads)
		if err != nil {
			return err
		}
		if len(bad.sizes) == 0 {
			return fmt.Errorf("%w: all masks of %s are black", ErrMask, defect.Name)
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
