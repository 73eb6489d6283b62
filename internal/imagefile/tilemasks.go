package imagefile

import (
	"slices"

	"github.com/deepmed/anomaly/internal/tiling"
	"github.com/deepmed/anomaly/models"
)

// tileMasks are the parts of the tiles of an image that are judged.
type tileMasks struct {
	grid tiling.Grid
	mask []bool // of the region, with that width
	wide int
	// columns and rows are those of the mask by column and row of the image.
	columns, rows []int
	at            []bool // of the tile that is put
}

// tileMasks returns the masks of the tiles of a grid, nil without a region.
func (o Options) tileMasks(g tiling.Grid) *tileMasks {
	if o.Region == nil {
		return nil
	}
	m := &tileMasks{grid: g, mask: o.mask, wide: o.Region.Width, at: make([]bool, g.Side*g.Side)}
	m.columns, m.rows = o.Region.Lines(models.Size{W: g.W, H: g.H})
	return m
}

// of returns the mask of a tile, which is valid until the next call. What is beyond the image
// is judged as its last pixels are.
func (m *tileMasks) of(left, top int) []bool {
	side := m.grid.Side
	for y := range side {
		line := m.mask[m.rows[min(top+y, m.grid.H-1)]*m.wide:][:m.wide]
		for x := range side {
			m.at[y*side+x] = line[m.columns[min(left+x, m.grid.W-1)]]
		}
	}
	return m.at
}

// kept returns the places of the tiles with a pixel inside.
func (m *tileMasks) kept() (places []int) {
	for i := range m.grid.Len() {
		if slices.Contains(m.of(m.grid.At(i)), true) {
			places = append(places, i)
		}
	}
	return places
}

// put returns the tile with its mask, for which it has room or gets it.
func (m *tileMasks) put(pix []byte, pixel, left, top int) []byte {
	size := models.Square(m.grid.Side)
	layout := Layout{Size: size, Deep: pixel == deepPixel, Masked: true}
	out := *borrow(layout.Bytes())
	copy(out, pix)
	giveBack(&pix)
	layout.setMask(out, m.of(left, top))
	return out
}
