package jpeg2000

import (
	"cmp"
	"fmt"
	"slices"
)

// ceilDiv and floorDiv divide by 2^n; the arguments are not negative.
func ceilDiv(v, n int) int  { return (v + 1<<n - 1) >> n }
func floorDiv(v, n int) int { return v >> n }

// resolution is one resolution of a tile's component.
type resolution struct {
	rect
	bands        []band
	wide, high   int // precincts
	precW, precH int // exponents of a precinct's size
	x0, y0       int // the first precinct's index
	precincts    []*precinct
}

// band is a band of a resolution.
type band struct {
	rect
	kind   int // 0 LL, 1 HL, 2 LH, 3 HH
	planes int // the most bit planes of a block
	step   float32
	values []int32 // twice the coefficients, w()×h()
}

// precinct is the part of a resolution that a packet describes.
type precinct struct{ bands []precinctBand }

type precinctBand struct {
	wide, high int
	blocks     []block
	inclusion  tagTree
	zeroPlanes tagTree
}

// block is a code block.
type block struct {
	rect     // in the band's coordinates
	included bool
	zero     int // bit planes without a bit
	lengthSz int // Lblock of the standard
	passes   int
	segments []segment
}

// segment is a run of coding passes whose arithmetic coding is terminated together.
type segment struct {
	passes, most int
	data         []byte
	pieces       [][]byte // more than one if it is in several packets
}

// tileComponent is a component of a tile.
type tileComponent struct {
	rect
	style       *style
	resolutions []resolution
}

// newTileComponent lays out a component.
func newTileComponent(area rect, s *style, q *quantization, depth int) (*tileComponent, error) {
	c := &tileComponent{rect: area, style: s, resolutions: make([]resolution, s.levels+1)}
	for r := range c.resolutions {
		res, n := &c.resolutions[r], s.levels-r
		res.rect = rect{ceilDiv(area.x0, n), ceilDiv(area.y0, n), ceilDiv(area.x1, n), ceilDiv(area.y1, n)}
		res.precW, res.precH = s.precinctW[r], s.precinctH[r]
		res.x0, res.y0 = floorDiv(res.rect.x0, res.precW), floorDiv(res.rect.y0, res.precH)
		if !res.empty() {
			res.wide = ceilDiv(res.x1, res.precW) - res.x0
			res.high = ceilDiv(res.y1, res.precH) - res.y0
		}
		kinds := []int{1, 2, 3}
		level := n + 1
		if r == 0 {
			kinds, level = []int{0}, n
		}
		for i, kind := range kinds {
			b := band{kind: kind}
			b.rect = bandRect(area, level, kind&1, kind>>1)
			exponent, mantissa, err := q.band(r, i)
			if err != nil {
				return nil, err
			}
			b.planes = q.guard + exponent - 1
			if b.planes > maxPlanes || exponent < 0 {
				return nil, fmt.Errorf("%w: %d bit planes, at most %d are read", ErrUnsupported, b.planes, maxPlanes)
			}
			gain := []int{0, 1, 1, 2}[kind]
			b.step = float32(pow2(depth+gain-exponent) * (1 + float64(mantissa)/2048))
			res.bands = append(res.bands, b)
		}
	}
	return c, nil
}

func pow2(n int) float64 {
	if n >= 0 {
		return float64(int64(1) << n)
	}
	return 1 / float64(int64(1)<<-n)
}

// bandRect returns a band's rectangle (T.800, B-15); xo and yo are 1 for high frequencies.
func bandRect(a rect, level, xo, yo int) rect {
	if level == 0 {
		return a
	}
	ox, oy := xo<<(level-1), yo<<(level-1)
	div := func(v, o int) int {
		if v <= o {
			return 0
		}
		return ceilDiv(v-o, level)
	}
	return rect{div(a.x0, ox), div(a.y0, oy), div(a.x1, ox), div(a.y1, oy)}
}

// Limits of a tile's parts, which bound the memory that a file can ask for with a few bits
// each.
const (
	maxPrecincts = 1 << 18
	// bytesPerPart allows one more block, and one more contribution of a packet to a
	// block, for this number of bytes, beyond the free ones.
	bytesPerPart      = 16
	freeBlocks        = 1 << 18
	freeContributions = 1 << 21
)

// budget is the number of blocks that may still be laid out, and of contributions that may
// still be read.
type budget struct{ blocks, contributions int }

func newBudget(length int) budget {
	return budget{freeBlocks + length/bytesPerPart, freeContributions + length/bytesPerPart}
}

// precinct returns a precinct, which it lays out when it is first used.
func (c *tileComponent) precinct(r, index int, left *budget) (*precinct, error) {
	res := &c.resolutions[r]
	if p := res.precincts[index]; p != nil {
		return p, nil
	}
	px, py := res.x0+index%res.wide, res.y0+index/res.wide
	w, h := res.precW, res.precH
	if r > 0 {
		w, h = w-1, h-1 // in a band
	}
	p := &precinct{bands: make([]precinctBand, len(res.bands))}
	bw, bh := min(c.style.blockW, w), min(c.style.blockH, h)
	for i := range res.bands {
		area := rect{px << w, py << h, (px + 1) << w, (py + 1) << h}.and(res.bands[i].rect)
		if area.empty() {
			continue
		}
		b := &p.bands[i]
		x0, y0 := floorDiv(area.x0, bw), floorDiv(area.y0, bh)
		b.wide, b.high = ceilDiv(area.x1, bw)-x0, ceilDiv(area.y1, bh)-y0
		if left.blocks -= b.wide * b.high; left.blocks < 0 {
			return nil, fmt.Errorf("%w: it has too many blocks for its length", ErrDamaged)
		}
		b.blocks = make([]block, b.wide*b.high)
		for k := range b.blocks {
			x, y := x0+k%b.wide, y0+k/b.wide
			b.blocks[k] = block{rect: rect{x << bw, y << bh, (x + 1) << bw, (y + 1) << bh}.and(area), lengthSz: 3}
		}
		b.inclusion, b.zeroPlanes = newTagTree(b.wide, b.high), newTagTree(b.wide, b.high)
	}
	res.precincts[index] = p
	return p, nil
}

// entry is a precinct in the order of packets.
type entry struct {
	component, resolution, precinct int32
	x, y                            int64 // its position in the image
}

// Progression orders.
const (
	layerResolution = iota
	resolutionLayer
	resolutionPosition
	positionComponent
	componentPosition
)

// order returns the precincts of a tile in the order of its progression. Each has at
// least one packet of at least one byte, so the tile's length bounds their number.
func order(components []*tileComponent, progression, length int) ([]entry, error) {
	most := min(length, maxPrecincts)
	total := 0
	for _, c := range components {
		for r := range c.resolutions {
			res := &c.resolutions[r]
			if res.wide > 0 && res.high > (most-total)/res.wide {
				return nil, fmt.Errorf("%w: it has more precincts than bytes, or more than %d", ErrDamaged, maxPrecincts)
			}
			total += res.wide * res.high
		}
	}
	entries := make([]entry, 0, total)
	for i, c := range components {
		for r := range c.resolutions {
			res, n := &c.resolutions[r], c.style.levels-r
			res.precincts = make([]*precinct, res.wide*res.high)
			for p := range res.precincts {
				x := int64(res.x0+p%res.wide) << (res.precW + n)
				y := int64(res.y0+p/res.wide) << (res.precH + n)
				entries = append(entries, entry{int32(i), int32(r), int32(p), max(x, int64(c.x0)), max(y, int64(c.y0))})
			}
		}
	}
	position := func(a, b entry) int { return cmp.Or(cmp.Compare(a.y, b.y), cmp.Compare(a.x, b.x)) }
	slices.SortStableFunc(entries, func(a, b entry) int {
		byRes, byComp := cmp.Compare(a.resolution, b.resolution), cmp.Compare(a.component, b.component)
		byPrec := cmp.Compare(a.precinct, b.precinct)
		switch progression {
		case resolutionPosition:
			return cmp.Or(byRes, position(a, b), byComp, byPrec)
		case positionComponent:
			return cmp.Or(position(a, b), byComp, byRes, byPrec)
		case componentPosition:
			return cmp.Or(byComp, position(a, b), byRes, byPrec)
		}
		return cmp.Or(byRes, byComp, byPrec)
	})
	return entries, nil
}
