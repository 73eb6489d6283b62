package jpeg2000

import (
	"fmt"
	"math/bits"
)

// bitReader reads the bits of packet headers. After a byte 0xff comes one of 7 bits.
type bitReader struct {
	data []byte
	cur  byte
	left int
	full bool // the current byte is 0xff
}

func (r *bitReader) bit() (int, error) {
	if r.left == 0 {
		if len(r.data) == 0 {
			return 0, errTruncated
		}
		r.left = 8
		if r.full {
			r.left = 7
		}
		r.cur = r.data[0]
		r.data = r.data[1:]
		r.full = r.cur == 0xff
	}
	r.left--
	return int(r.cur >> r.left & 1), nil
}

func (r *bitReader) bits(n int) (v int, err error) {
	for range n {
		b, err := r.bit()
		if err != nil {
			return 0, err
		}
		v = v<<1 | b
	}
	return v, nil
}

// align skips to the next byte, after a stuffed one.
func (r *bitReader) align() error {
	r.left = 0
	if r.full {
		if len(r.data) == 0 {
			return errTruncated
		}
		r.data, r.full = r.data[1:], false
	}
	return nil
}

// tagTree is a tag tree (T.800, B.10.2).
type tagTree struct {
	wide, high []int // of each level, leaves first
	first      []int // index of each level's first node
	nodes      []tagNode
}

type tagNode struct {
	low   int32 // the value is at least this
	known bool
}

func newTagTree(w, h int) tagTree {
	t := tagTree{}
	n := 0
	for {
		t.wide, t.high, t.first = append(t.wide, w), append(t.high, h), append(t.first, n)
		n += w * h
		if w*h <= 1 {
			break
		}
		w, h = (w+1)/2, (h+1)/2
	}
	t.nodes = make([]tagNode, n)
	return t
}

// decode reports whether the value of a leaf is below threshold, and returns a lower bound
// of it, which is the value if it is below.
func (t *tagTree) decode(r *bitReader, x, y, threshold int) (int, bool, error) {
	low := int32(0)
	for level := len(t.wide) - 1; level >= 0; level-- {
		node := &t.nodes[t.first[level]+(y>>level)*t.wide[level]+x>>level]
		node.low = max(node.low, low)
		for !node.known && int(node.low) < threshold {
			bit, err := r.bit()
			if err != nil {
				return 0, false, err
			}
			if bit == 1 {
				node.known = true
			} else {
				node.low++
			}
		}
		low = node.low
	}
	leaf := t.nodes[y*t.wide[0]+x]
	return int(leaf.low), leaf.known && int(leaf.low) < threshold, nil
}

// packets reads all packets of a tile.
func packets(components []*tileComponent, c *coding, data []byte) error {
	entries, err := order(components, c.progression, len(data))
	if err != nil {
		return err
	}
	left := newBudget(len(data))
	read := func(e entry, layer int) error {
		if len(data) == 0 {
			return errTruncated
		}
		data, err = packet(components[e.component], int(e.resolution), int(e.precinct), layer, data, &left)
		return err
	}
	switch c.progression {
	case layerResolution:
		for layer := range c.layers {
			for _, e := range entries {
				if err := read(e, layer); err != nil {
					return err
				}
			}
		}
	case resolutionLayer:
		for from := 0; from < len(entries); {
			to := from
			for to < len(entries) && entries[to].resolution == entries[from].resolution {
				to++
			}
			for layer := range c.layers {
				for _, e := range entries[from:to] {
					if err := read(e, layer); err != nil {
						return err
					}
				}
			}
			from = to
		}
	default:
		for _, e := range entries {
			for layer := range c.layers {
				if err := read(e, layer); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// contribution is the part of a block's segment that one packet has.
type contribution struct {
	block   *block
	segment int
	length  int
}

// packet reads a packet and returns the data after it.
func packet(c *tileComponent, resolution, index, layer int, data []byte, left *budget) ([]byte, error) {
	if len(data) >= 6 && data[0] == 0xff && data[1] == sop&0xff {
		data = data[6:]
	}
	r := bitReader{data: data}
	present, err := r.bit()
	if err != nil {
		return nil, err
	}
	var parts []contribution
	if present == 1 {
		p, err := c.precinct(resolution, index, left)
		if err != nil {
			return nil, err
		}
		for i := range p.bands {
			b := &p.bands[i]
			for k := range b.blocks {
				before := len(parts)
				if parts, err = b.header(&r, k, layer, c.resolutions[resolution].bands[i].planes, c.style.flags, parts); err != nil {
					return nil, err
				}
				if left.contributions -= len(parts) - before; left.contributions < 0 {
					return nil, fmt.Errorf("%w: it has too many packets for its length", ErrDamaged)
				}
			}
		}
	}
	if err := r.align(); err != nil {
		return nil, err
	}
	data = r.data
	if len(data) >= 2 && data[0] == 0xff && data[1] == eph&0xff {
		data = data[2:]
	}
	for _, part := range parts {
		if part.length > len(data) {
			return nil, errTruncated
		}
		s := &part.block.segments[part.segment]
		if s.data == nil && s.pieces == nil {
			s.data = data[:part.length:part.length]
		} else {
			if s.pieces == nil {
				s.pieces = [][]byte{s.data}
			}
			s.pieces = append(s.pieces, data[:part.length])
		}
		data = data[part.length:]
	}
	return data, nil
}

// header reads the part of a packet header that describes a block.
func (b *precinctBand) header(r *bitReader, k, layer, planes int, flags byte, parts []contribution) ([]contribution, error) {
	blk, x, y := &b.blocks[k], k%b.wide, k/b.wide
	included := false
	if blk.included {
		bit, err := r.bit()
		if err != nil {
			return nil, err
		}
		included = bit == 1
	} else {
		var err error
		if _, included, err = b.inclusion.decode(r, x, y, layer+1); err != nil {
			return nil, err
		}
	}
	if !included {
		return parts, nil
	}
	if !blk.included {
		blk.included = true
		for threshold := 1; ; threshold++ {
			zero, known, err := b.zeroPlanes.decode(r, x, y, threshold)
			if err != nil {
				return nil, err
			}
			if known {
				blk.zero = zero
				break
			}
			if threshold > planes {
				return nil, fmt.Errorf("%w: a block without bit planes", ErrDamaged)
			}
		}
	}
	passes, err := passCount(r)
	if err != nil {
		return nil, err
	}
	if blk.passes += passes; blk.passes > 3*(planes-blk.zero)-2 {
		return nil, fmt.Errorf("%w: a block has more passes than bit planes", ErrDamaged)
	}
	for {
		bit, err := r.bit()
		if err != nil {
			return nil, err
		}
		if bit == 0 {
			break
		}
		if blk.lengthSz++; blk.lengthSz > 28 {
			return nil, fmt.Errorf("%w: a block is too long", ErrDamaged)
		}
	}
	for passes > 0 {
		last := len(blk.segments) - 1
		if last < 0 || blk.segments[last].passes == blk.segments[last].most {
			blk.segments = append(blk.segments, segment{most: segmentPasses(blk.segments, flags)})
			last++
		}
		s := &blk.segments[last]
		n := min(passes, s.most-s.passes)
		length, err := r.bits(blk.lengthSz + bits.Len(uint(n)) - 1)
		if err != nil {
			return nil, err
		}
		s.passes += n
		passes -= n
		parts = append(parts, contribution{blk, last, length})
	}
	return parts, nil
}

// segmentPasses returns the most passes of the segment after those before.
func segmentPasses(before []segment, flags byte) int {
	switch {
	case flags&terminate != 0:
		return 1
	case flags&bypass != 0:
		// The first 10 passes, then alternately two raw ones and a coded one.
		if len(before) == 0 {
			return 10
		}
		if m := before[len(before)-1].most; m == 1 || m == 10 {
			return 2
		}
		return 1
	}
	return 1 << 10
}

// passCount reads the number of coding passes (T.800, table B.4).
func passCount(r *bitReader) (int, error) {
	for _, code := range [...]struct{ bits, stop, base int }{{1, 1, 1}, {1, 1, 2}, {2, 3, 3}, {5, 31, 6}} {
		v, err := r.bits(code.bits)
		if err != nil {
			return 0, err
		}
		if v < code.stop {
			return code.base + v, nil
		}
	}
	v, err := r.bits(7)
	return 37 + v, err
}
