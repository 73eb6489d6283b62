package jpeg2000

import (
	"fmt"
	"math"
	"slices"
)

// workPerByte bounds the visits of coefficients for each byte of a file, and freeWork is
// allowed in any file. OpenJPEG's files have 20 to 120 visits a byte. A file that asks for
// more would take minutes for a few megabytes.
const (
	workPerByte = 512
	freeWork    = 64 << 20
)

var errTooMuchWork = fmt.Errorf("%w: it has too many coding passes for its length", ErrDamaged)

// Decode decodes a JPEG 2000 codestream, or the first one of a JP2 file. It calls check
// with the header before it allocates memory for the samples, and returns check's error.
// The samples of a pixel are adjacent; a sample is the low Bits bits of its value. The
// errors are ErrDamaged and ErrUnsupported, wrapped.
func Decode(data []byte, check func(Header) error) (Header, []uint16, error) {
	data, err := codestream(data)
	if err != nil {
		return Header{}, nil, err
	}
	d := &decoder{}
	if err := d.read(data, check); err != nil {
		return d.header, nil, err
	}
	out := make([]uint16, d.header.W*d.header.H*d.header.Components)
	blocks := &blockDecoder{work: freeWork + workPerByte*len(data)}
	for index := range d.tilesWide * d.tilesHi {
		t := d.tiles[index]
		if t == nil {
			return d.header, nil, errTruncated
		}
		if err := d.tile(index, t, blocks, out); err != nil {
			return d.header, nil, err
		}
		delete(d.tiles, index)
	}
	return d.header, out, nil
}

// tile decodes a tile into out.
func (d *decoder) tile(index int, t *tile, blocks *blockDecoder, out []uint16) error {
	x, y := d.tileX+index%d.tilesWide*d.tileW, d.tileY+index/d.tilesWide*d.tileH
	area := rect{x, y, x + d.tileW, y + d.tileH}.and(d.image)
	if area.empty() {
		return nil
	}
	n := d.header.Components
	components := make([]*tileComponent, n)
	for i := range components {
		var err error
		components[i], err = newTileComponent(area, &t.coding.styles[i], &t.coding.quants[i], d.header.Bits)
		if err != nil {
			return err
		}
	}
	data := t.parts[0]
	if len(t.parts) > 1 {
		data = slices.Concat(t.parts...)
	}
	if err := packets(components, t.coding, data); err != nil {
		return err
	}
	planes := make([][]float32, n)
	whole := make([][]int32, n)
	for i, c := range components {
		if err := c.blocks(blocks); err != nil {
			return err
		}
		if c.style.reversible {
			whole[i] = reconstruct(c, func(b *band) []int32 {
				for k, v := range b.values {
					b.values[k] = v / 2
				}
				return b.values
			}, reverse53)
		} else {
			planes[i] = reconstruct(c, dequantize, reverse97)
		}
		components[i] = &tileComponent{style: c.style} // its blocks are no longer needed
	}
	if t.coding.transform {
		if err := inverseTransform(whole, planes); err != nil {
			return err
		}
	}
	for i := range n {
		d.store(out, area, i, whole[i], planes[i])
	}
	return nil
}

// blocks decodes all blocks of a component into its bands.
func (c *tileComponent) blocks(d *blockDecoder) error {
	for r := range c.resolutions {
		res := &c.resolutions[r]
		for i := range res.bands {
			b := &res.bands[i]
			if !b.empty() {
				b.values = make([]int32, b.w()*b.h())
			}
		}
		for _, p := range res.precincts {
			if p == nil {
				continue
			}
			for i := range p.bands {
				for k := range p.bands[i].blocks {
					blk := &p.bands[i].blocks[k]
					if !blk.included {
						continue
					}
					if err := d.decode(blk, &res.bands[i], c.style.flags); err != nil {
						return err
					}
				}
			}
		}
		res.precincts = nil
	}
	return nil
}

// dequantize returns a band's coefficients.
func dequantize(b *band) []float32 {
	out := make([]float32, len(b.values))
	step := b.step / 2
	for i, v := range b.values {
		out[i] = float32(v) * step
	}
	return out
}

// reconstruct returns the samples of a component from its bands.
func reconstruct[T number](c *tileComponent, values func(*band) []T, lift lifting[T]) []T {
	take := func(b *band) []T {
		v := values(b)
		b.values = nil
		return v
	}
	first := &c.resolutions[0]
	low, area := take(&first.bands[0]), first.rect
	for r := 1; r < len(c.resolutions); r++ {
		res := &c.resolutions[r]
		var bands [3][]T
		var areas [3]rect
		for i := range bands {
			bands[i], areas[i] = take(&res.bands[i]), res.bands[i].rect
		}
		if res.empty() {
			low, area = nil, res.rect
			continue
		}
		low = synthesize(low, area, &bands, &areas, res.rect, lift)
		area = res.rect
	}
	return low
}

// inverseTransform reverses the transform of the first three components (T.800, annex G).
func inverseTransform(whole [][]int32, planes [][]float32) error {
	switch {
	case whole[0] != nil && whole[1] != nil && whole[2] != nil:
		a, b, c := whole[0], whole[1], whole[2]
		for i := range a {
			y, u, v := a[i], b[i], c[i]
			g := y - (u+v)>>2
			a[i], b[i], c[i] = v+g, g, u+g
		}
	case planes[0] != nil && planes[1] != nil && planes[2] != nil:
		a, b, c := planes[0], planes[1], planes[2]
		for i := range a {
			y, u, v := a[i], b[i], c[i]
			a[i], b[i], c[i] = y+1.402*v, y-0.344136*u-0.714136*v, y+1.772*u
		}
	default:
		return fmt.Errorf("%w: a colour transform of components that are coded differently", ErrDamaged)
	}
	return nil
}

// store writes the samples of a component's tile.
func (d *decoder) store(out []uint16, area rect, component int, whole []int32, plane []float32) {
	h := d.header
	shift, low, high := int32(0), -int32(1)<<(h.Bits-1), int32(1)<<(h.Bits-1)-1
	if !h.Signed {
		shift = 1 << (h.Bits - 1)
		low, high = 0, 1<<h.Bits-1
	}
	mask := uint16(1<<h.Bits - 1)
	w := area.w()
	for y := range area.h() {
		at := ((area.y0-d.image.y0+y)*h.W+area.x0-d.image.x0)*h.Components + component
		for x := range w {
			var v int32
			if whole != nil {
				v = whole[y*w+x]
			} else {
				v = int32(math.RoundToEven(float64(max(min(plane[y*w+x], 1<<20), -1<<20))))
			}
			out[at] = uint16(min(max(v+shift, low), high)) & mask
			at += h.Components
		}
	}
}
