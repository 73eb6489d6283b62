package jpeg2000

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Errors of Decode.
var (
	// ErrDamaged is returned, wrapped, for bytes that are not a JPEG 2000 codestream.
	ErrDamaged = errors.New("damaged JPEG 2000")
	// ErrUnsupported is returned, wrapped, for a codestream with a feature that is not
	// read.
	ErrUnsupported = errors.New("unsupported JPEG 2000")
)

var errTruncated = fmt.Errorf("%w: it is truncated", ErrDamaged)

// Header is the size and the depth in the codestream's header.
type Header struct {
	W, H, Components int
	// Bits is the number of bits of a sample, 1 to 16, and Signed reports whether they
	// are a number in two's complement.
	Bits   int
	Signed bool
}

// Markers of a codestream.
const (
	soc, siz, cod, coc, qcd, qcc = 0xff4f, 0xff51, 0xff52, 0xff53, 0xff5c, 0xff5d
	rgn, poc, ppm, ppt           = 0xff5e, 0xff5f, 0xff60, 0xff61
	sot, sod, eoc                = 0xff90, 0xff93, 0xffd9
	sop, eph                     = 0xff91, 0xff92
	capabilities                 = 0xff50
)

const (
	maxComponents = 4
	maxLevels     = 32
	// maxPlanes bounds the bit planes of a block. 16 bits with a component transform,
	// the gain of a band and 7 guard bits need 26.
	maxPlanes = 30
	// A tile costs as much as a thousand pixels before its first one is decoded.
	smallTile, maxSmallTiles = 1024, 4096
)

// rect is a rectangle: x0 ≤ x < x1, y0 ≤ y < y1.
type rect struct{ x0, y0, x1, y1 int }

func (r rect) w() int      { return r.x1 - r.x0 }
func (r rect) h() int      { return r.y1 - r.y0 }
func (r rect) empty() bool { return r.x1 <= r.x0 || r.y1 <= r.y0 }

func (r rect) and(o rect) rect {
	return rect{max(r.x0, o.x0), max(r.y0, o.y0), min(r.x1, o.x1), min(r.y1, o.y1)}
}

// style is the coding style of a component.
type style struct {
	levels     int
	blockW     int // exponents of a block's width and height
	blockH     int
	flags      byte
	reversible bool
	precinctW  [maxLevels + 1]int // exponents, by resolution
	precinctH  [maxLevels + 1]int
	rank       int
}

// rank returns the precedence of a segment: a tile's segment replaces the file's, and a
// component's replaces the segment for all components.
func rank(inTile, ofComponent bool) int {
	r := 1
	if inTile {
		r += 2
	}
	if ofComponent {
		r++
	}
	return r
}

// Flags of a block's coding.
const (
	bypass, resetContexts, terminate, causal, symbols = 1, 2, 4, 8, 32
	highThroughput                                    = 64
)

// quantization is that of a component: exponents and mantissas by band.
type quantization struct {
	kind      int // 0 none, 1 derived from the first band, 2 by band
	guard     int
	exponents []int
	mantissas []int
	rank      int
}

// coding are the parameters of a tile.
type coding struct {
	progression, layers int
	transform           bool // of the first three components
	styles              [maxComponents]style
	quants              [maxComponents]quantization
	haveStyle           bool
	haveQuant           bool
}

type tile struct {
	coding *coding
	parts  [][]byte
	length int
}

// decoder reads a codestream's headers.
type decoder struct {
	header             Header
	image              rect
	tileW, tileH       int
	tileX, tileY       int // the origin of the tiles
	tilesWide, tilesHi int
	main               coding
	tiles              map[int]*tile
}

// codestream returns the codestream in a JP2 file, which some programs write where a
// codestream is expected.
func codestream(data []byte) ([]byte, error) {
	if len(data) < 12 || string(data[4:8]) != "jP  " {
		return data, nil
	}
	for len(data) >= 8 {
		n, kind, header := int64(binary.BigEndian.Uint32(data)), string(data[4:8]), 8
		if n == 1 && len(data) >= 16 {
			n, header = int64(min(binary.BigEndian.Uint64(data[8:]), 1<<40)), 16
		}
		if n == 0 {
			n = int64(len(data))
		}
		if n < int64(header) || n > int64(len(data)) {
			break
		}
		if kind == "jp2c" {
			return data[header:n], nil
		}
		data = data[n:]
	}
	return nil, errTruncated
}

// read reads all headers and collects the tile parts.
func (d *decoder) read(data []byte, check func(Header) error) error {
	if len(data) < 4 || binary.BigEndian.Uint16(data) != soc {
		return fmt.Errorf("%w: it does not begin with the marker of a codestream", ErrDamaged)
	}
	data = data[2:]
	d.tiles = map[int]*tile{}
	for {
		if len(data) < 2 {
			return d.end()
		}
		marker := int(binary.BigEndian.Uint16(data))
		if marker == eoc {
			return d.end()
		}
		if len(data) < 4 {
			return d.end()
		}
		n := int(binary.BigEndian.Uint16(data[2:]))
		if n < 2 || 2+n > len(data) {
			return errTruncated
		}
		body := data[4 : 2+n]
		if (marker == siz) != (d.header.W == 0) {
			return fmt.Errorf("%w: the size is missing or repeated", ErrDamaged)
		}
		var err error
		switch marker {
		case siz:
			if err = d.size(body); err == nil {
				err = check(d.header)
			}
		case sot:
			data, err = d.tilePart(data, body)
			if err != nil {
				return err
			}
			continue
		default:
			err = d.parameters(&d.main, marker, body, false)
		}
		if err != nil {
			return err
		}
		data = data[2+n:]
	}
}

// end checks that there is something to decode.
func (d *decoder) end() error {
	if len(d.tiles) != d.tilesWide*d.tilesHi || len(d.tiles) == 0 {
		return errTruncated
	}
	return nil
}

// size reads the size of the image, its tiles and its components.
func (d *decoder) size(b []byte) error {
	if len(b) < 36 {
		return errTruncated
	}
	u32 := func(at int) int { return int(binary.BigEndian.Uint32(b[at:])) }
	d.image = rect{u32(10), u32(14), u32(2), u32(6)}
	d.tileW, d.tileH, d.tileX, d.tileY = u32(18), u32(22), u32(26), u32(30)
	n := int(binary.BigEndian.Uint16(b[34:]))
	switch {
	case d.image.empty() || d.image.x1 > 1<<31-1 || d.image.y1 > 1<<31-1:
		return fmt.Errorf("%w: %d×%d pixels", ErrDamaged, d.image.w(), d.image.h())
	case d.tileW < 1 || d.tileH < 1 || d.tileX > d.image.x0 || d.tileY > d.image.y0 || d.tileX+d.tileW <= d.image.x0 || d.tileY+d.tileH <= d.image.y0:
		return fmt.Errorf("%w: its tiles do not cover it", ErrDamaged)
	case n < 1 || n > maxComponents:
		return fmt.Errorf("%w: %d components, expected 1 to %d", ErrUnsupported, n, maxComponents)
	case len(b) < 36+3*n:
		return errTruncated
	}
	d.header = Header{W: d.image.w(), H: d.image.h(), Components: n, Bits: int(b[36]&0x7f) + 1, Signed: b[36]&0x80 != 0}
	for c := range n {
		if b[36+3*c] != b[36] || b[37+3*c] != 1 || b[38+3*c] != 1 {
			return fmt.Errorf("%w: its components have different sizes or depths", ErrUnsupported)
		}
	}
	if d.header.Bits > 16 {
		return fmt.Errorf("%w: %d bits per sample, at most 16 are read", ErrUnsupported, d.header.Bits)
	}
	d.tilesWide = (d.image.x1 - d.tileX + d.tileW - 1) / d.tileW
	d.tilesHi = (d.image.y1 - d.tileY + d.tileH - 1) / d.tileH
	if d.tilesWide > 65535 || d.tilesHi > 65535 || d.tilesWide*d.tilesHi > 65535 {
		return fmt.Errorf("%w: it has more than 65535 tiles", ErrDamaged)
	}
	if n := d.tilesWide * d.tilesHi; n > maxSmallTiles && d.tileW*d.tileH < smallTile {
		return fmt.Errorf("%w: it has %d tiles of fewer than %d pixels, at most %d are read", ErrUnsupported, n, smallTile, maxSmallTiles)
	}
	return nil
}

// tilePart reads a tile part, whose SOT segment has the content body, and returns what
// follows it.
func (d *decoder) tilePart(data, body []byte) ([]byte, error) {
	if len(body) < 8 {
		return nil, errTruncated
	}
	index, length := int(binary.BigEndian.Uint16(body)), int(binary.BigEndian.Uint32(body[2:]))
	if length == 0 || length > len(data) {
		length = len(data) // the last one may be shortened
	}
	if index >= d.tilesWide*d.tilesHi || length < 14 {
		return nil, fmt.Errorf("%w: tile %d of %d", ErrDamaged, index, d.tilesWide*d.tilesHi)
	}
	part, after := data[12:length], data[length:]
	t := d.tiles[index]
	if t == nil {
		if !d.main.haveStyle || !d.main.haveQuant {
			return nil, fmt.Errorf("%w: its coding style or quantization is missing", ErrDamaged)
		}
		t = &tile{coding: &d.main}
		d.tiles[index] = t
	}
	for {
		if len(part) < 2 {
			return nil, errTruncated
		}
		marker := int(binary.BigEndian.Uint16(part))
		if marker == sod {
			break
		}
		if len(part) < 4 {
			return nil, errTruncated
		}
		n := int(binary.BigEndian.Uint16(part[2:]))
		if n < 2 || 2+n > len(part) {
			return nil, errTruncated
		}
		if marker == cod || marker == coc || marker == qcd || marker == qcc {
			if t.coding == &d.main {
				own := d.main
				t.coding = &own
			}
		}
		if err := d.parameters(t.coding, marker, part[4:2+n], true); err != nil {
			return nil, err
		}
		part = part[2+n:]
	}
	part = part[2:]
	t.parts = append(t.parts, part)
	t.length += len(part)
	return after, nil
}

// parameters reads a segment of coding parameters; others are passed over.
func (d *decoder) parameters(c *coding, marker int, b []byte, inTile bool) error {
	switch marker {
	case cod:
		return d.codingStyle(c, b, inTile)
	case coc:
		if len(b) < 2 || int(b[0]) >= d.header.Components {
			return fmt.Errorf("%w: the coding style of an unknown component", ErrDamaged)
		}
		s := style{rank: rank(inTile, true)}
		err := s.read(b[2:], b[1]&1 != 0)
		c.styles[b[0]] = s
		return err
	case qcd:
		q := quantization{rank: rank(inTile, false)}
		if err := q.read(b); err != nil {
			return err
		}
		for i := range c.quants {
			if c.quants[i].rank <= q.rank {
				c.quants[i] = q
			}
		}
		c.haveQuant = true
		return nil
	case qcc:
		if len(b) < 1 || int(b[0]) >= d.header.Components {
			return fmt.Errorf("%w: the quantization of an unknown component", ErrDamaged)
		}
		q := quantization{rank: rank(inTile, true)}
		err := q.read(b[1:])
		c.quants[b[0]] = q
		return err
	case rgn:
		return fmt.Errorf("%w: it has a region of interest", ErrUnsupported)
	case poc:
		return fmt.Errorf("%w: it changes its progression order", ErrUnsupported)
	case ppm, ppt:
		return fmt.Errorf("%w: it has packed packet headers", ErrUnsupported)
	case capabilities:
		return fmt.Errorf("%w: it has high-throughput coding", ErrUnsupported)
	}
	return nil
}

// codingStyle reads a COD segment.
func (d *decoder) codingStyle(c *coding, b []byte, inTile bool) error {
	if len(b) < 10 {
		return errTruncated
	}
	c.progression, c.layers, c.transform = int(b[1]), int(binary.BigEndian.Uint16(b[2:])), b[4] != 0
	if c.progression > 4 || c.layers < 1 {
		return fmt.Errorf("%w: progression order %d with %d layers", ErrDamaged, c.progression, c.layers)
	}
	if c.transform && d.header.Components < 3 {
		return fmt.Errorf("%w: a colour transform of %d components", ErrDamaged, d.header.Components)
	}
	s := style{rank: rank(inTile, false)}
	if err := s.read(b[5:], b[0]&1 != 0); err != nil {
		return err
	}
	for i := range c.styles {
		if c.styles[i].rank <= s.rank {
			c.styles[i] = s
		}
	}
	c.haveStyle = true
	return nil
}

// read reads the part that COD and COC share.
func (s *style) read(b []byte, precincts bool) error {
	if len(b) < 5 {
		return errTruncated
	}
	s.levels, s.blockW, s.blockH = int(b[0]), int(b[1]&15)+2, int(b[2]&15)+2
	s.flags, s.reversible = b[3], b[4] == 1
	switch {
	case s.levels > maxLevels || s.blockW > 10 || s.blockH > 10 || s.blockW+s.blockH > 12 || b[4] > 1:
		return fmt.Errorf("%w: %d levels with blocks of 2^%d×2^%d", ErrDamaged, s.levels, s.blockW, s.blockH)
	case s.flags&highThroughput != 0:
		return fmt.Errorf("%w: it has high-throughput coding", ErrUnsupported)
	case precincts && len(b) < 6+s.levels:
		return errTruncated
	}
	for r := range s.levels + 1 {
		s.precinctW[r], s.precinctH[r] = 15, 15
		if precincts {
			s.precinctW[r], s.precinctH[r] = int(b[5+r]&15), int(b[5+r]>>4)
		}
		if r > 0 && (s.precinctW[r] == 0 || s.precinctH[r] == 0) {
			return fmt.Errorf("%w: its precincts are too small", ErrDamaged)
		}
	}
	return nil
}

// read reads the part that QCD and QCC share.
func (q *quantization) read(b []byte) error {
	if len(b) < 2 {
		return errTruncated
	}
	q.kind, q.guard = int(b[0]&31), int(b[0]>>5)
	b = b[1:]
	switch q.kind {
	case 0:
		for _, v := range b[:min(len(b), 3*maxLevels+1)] {
			q.exponents, q.mantissas = append(q.exponents, int(v>>3)), append(q.mantissas, 0)
		}
	case 1, 2:
		for len(b) >= 2 && len(q.exponents) <= 3*maxLevels {
			v := int(binary.BigEndian.Uint16(b))
			q.exponents, q.mantissas = append(q.exponents, v>>11), append(q.mantissas, v&0x7ff)
			b = b[2:]
		}
	default:
		return fmt.Errorf("%w: quantization %d", ErrDamaged, q.kind)
	}
	if len(q.exponents) == 0 {
		return errTruncated
	}
	return nil
}

// band returns the exponent and the mantissa of a band: 0 is LL, then HL, LH and HH of
// each resolution.
func (q *quantization) band(resolution, index int) (exponent, mantissa int, err error) {
	if q.kind == 1 {
		return q.exponents[0] - max(resolution-1, 0), q.mantissas[0], nil
	}
	at := 0
	if resolution > 0 {
		at = 3*(resolution-1) + index + 1
	}
	if at >= len(q.exponents) {
		return 0, 0, fmt.Errorf("%w: the quantization of a band is missing", ErrDamaged)
	}
	return q.exponents[at], q.mantissas[at], nil
}
