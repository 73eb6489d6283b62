package jpeg2000

import "slices"

// Flags of a coefficient: which of its eight neighbours are significant, the signs of
// four of them, and its own state.
const (
	north, south, east, west = 1 << 0, 1 << 1, 1 << 2, 1 << 3
	northEast, northWest     = 1 << 4, 1 << 5
	southEast, southWest     = 1 << 6, 1 << 7
	neighbours               = 0xff
	northMinus, southMinus   = 1 << 8, 1 << 9
	eastMinus, westMinus     = 1 << 10, 1 << 11
	significant              = 1 << 12
	refined                  = 1 << 13
	visited                  = 1 << 14
	below                    = south | southEast | southWest | southMinus
)

// zeroContexts are the contexts of zero coding (T.800, table D.1) by kind of band and
// significant neighbours.
var zeroContexts = func() (t [4][256]uint8) {
	count := func(f int, bits ...int) (n int) {
		for _, b := range bits {
			if f&b != 0 {
				n++
			}
		}
		return n
	}
	for kind := range t {
		for f := range t[kind] {
			h, v := count(f, east, west), count(f, north, south)
			d := count(f, northEast, northWest, southEast, southWest)
			if kind == 1 {
				h, v = v, h
			}
			t[kind][f] = zeroContextOf(kind, h, v, d)
		}
	}
	return t
}()

func zeroContextOf(kind, h, v, d int) uint8 {
	if kind == 3 {
		switch hv := h + v; {
		case d >= 3:
			return 8
		case d == 2:
			return uint8(6 + min(hv, 1))
		case d == 1:
			return uint8(3 + min(hv, 2))
		default:
			return uint8(min(hv, 2))
		}
	}
	switch {
	case h == 2:
		return 8
	case h == 1 && v >= 1:
		return 7
	case h == 1 && d >= 1:
		return 6
	case h == 1:
		return 5
	case v == 2:
		return 4
	case v == 1:
		return 3
	}
	return uint8(min(d, 2))
}

// signContexts are the contexts of signs (T.800, table D.3) and the predicted sign, by
// the sums of the horizontal and the vertical neighbours plus 1.
var signContexts = [3][3]struct{ context, flip uint8 }{
	{{signContext + 4, 1}, {signContext + 3, 1}, {signContext + 2, 1}},
	{{signContext + 1, 1}, {signContext, 0}, {signContext + 1, 0}},
	{{signContext + 2, 0}, {signContext + 3, 0}, {signContext + 4, 0}},
}

// blockDecoder decodes the coefficients of blocks (T.800, annex D).
type blockDecoder struct {
	mq    mq
	raw   rawBits
	isRaw bool
	w, h  int
	flags []uint16 // with a border of one
	// values are twice the magnitudes, with half of the last bit added.
	values   []int32
	negative []bool
	zero     *[256]uint8
	causal   bool
	// work bounds the visits of coefficients.
	work int
}

// decode decodes a block into values, at the block's place in the band's w columns. It
// returns an error if the work is more than the file's length allows.
func (d *blockDecoder) decode(b *block, bandArea *band, flags byte) error {
	d.w, d.h = b.w(), b.h()
	n := d.w * d.h
	d.flags = resized(d.flags, (d.w+2)*(d.h+2))
	d.values, d.negative = resized(d.values, n), resized(d.negative, n)
	d.zero, d.causal = &zeroContexts[bandArea.kind], flags&causal != 0
	d.mq.resetContexts()
	plane, kind, index := bandArea.planes-b.zero-1, 2, 0
	for i := range b.segments {
		s := &b.segments[i]
		data := s.data
		if s.pieces != nil {
			data = slices.Concat(s.pieces...)
		}
		d.isRaw = flags&bypass != 0 && index >= 10 && kind != 2
		if d.isRaw {
			d.raw = rawBits{data: data}
		} else {
			d.mq.start(data)
		}
		for range s.passes {
			if d.work -= n; d.work < 0 {
				return errTooMuchWork
			}
			switch kind {
			case 0:
				d.significance(plane)
			case 1:
				d.refinement(plane)
			default:
				d.cleanup(plane)
				if flags&symbols != 0 {
					for range 4 {
						d.mq.decode(uniformContext)
					}
				}
			}
			if flags&resetContexts != 0 {
				d.mq.resetContexts()
			}
			index++
			if kind++; kind == 3 {
				kind = 0
				plane--
			}
		}
	}
	for y := range d.h {
		out := bandArea.values[(b.y0-bandArea.y0+y)*bandArea.w()+b.x0-bandArea.x0:][:d.w]
		for x := range out {
			v := d.values[y*d.w+x]
			if d.negative[y*d.w+x] {
				v = -v
			}
			out[x] = v
		}
	}
	return nil
}

// resized returns n zeros, in the memory of s if that is large enough.
func resized[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	s = s[:n]
	clear(s)
	return s
}

// at returns the flags of a coefficient, without the flags of the next stripe if the block is
// vertically causal.
func (d *blockDecoder) at(x, y int) uint16 {
	f := d.flags[(y+1)*(d.w+2)+x+1]
	if d.causal && y&3 == 3 {
		f &^= below
	}
	return f
}

func (d *blockDecoder) set(x, y int, f uint16) { d.flags[(y+1)*(d.w+2)+x+1] |= f }

// becomeSignificant decodes the sign of a coefficient and sets the flags of its
// neighbours.
func (d *blockDecoder) becomeSignificant(x, y, plane int) {
	f := d.at(x, y)
	var sign uint8
	if d.isRaw {
		sign = uint8(d.raw.bit())
	} else {
		side := func(a, aMinus, b, bMinus uint16) int {
			sum := 0
			if f&a != 0 {
				if sum++; f&aMinus != 0 {
					sum -= 2
				}
			}
			if f&b != 0 {
				if sum++; f&bMinus != 0 {
					sum -= 2
				}
			}
			return min(max(sum, -1), 1) + 1
		}
		s := signContexts[side(east, eastMinus, west, westMinus)][side(north, northMinus, south, southMinus)]
		sign = uint8(d.mq.decode(int(s.context))) ^ s.flip
	}
	i := y*d.w + x
	d.values[i] = 3 << plane
	d.negative[i] = sign == 1
	stride := d.w + 2
	p := (y+1)*stride + x + 1
	d.flags[p] |= significant
	d.flags[p-stride-1] |= southEast
	d.flags[p-stride+1] |= southWest
	d.flags[p+stride-1] |= northEast
	d.flags[p+stride+1] |= northWest
	minus := uint16(sign)
	d.flags[p-stride] |= south | minus*southMinus
	d.flags[p+stride] |= north | minus*northMinus
	d.flags[p-1] |= east | minus*eastMinus
	d.flags[p+1] |= west | minus*westMinus
}

// significance is the significance propagation pass.
func (d *blockDecoder) significance(plane int) {
	for top := 0; top < d.h; top += 4 {
		for x := range d.w {
			for y := top; y < min(top+4, d.h); y++ {
				f := d.at(x, y)
				if f&significant != 0 || f&neighbours == 0 {
					continue
				}
				var bit int
				if d.isRaw {
					bit = d.raw.bit()
				} else {
					bit = d.mq.decode(int(d.zero[f&neighbours]))
				}
				if bit == 1 {
					d.becomeSignificant(x, y, plane)
				}
				d.set(x, y, visited)
			}
		}
	}
}

// refinement is the magnitude refinement pass.
func (d *blockDecoder) refinement(plane int) {
	for top := 0; top < d.h; top += 4 {
		for x := range d.w {
			for y := top; y < min(top+4, d.h); y++ {
				f := d.at(x, y)
				if f&(significant|visited) != significant {
					continue
				}
				var bit int
				if d.isRaw {
					bit = d.raw.bit()
				} else {
					context := refineContext
					if f&refined != 0 {
						context += 2
					} else if f&neighbours != 0 {
						context++
					}
					bit = d.mq.decode(context)
				}
				// The half that was added becomes the bit, and half of it is added.
				if v := &d.values[y*d.w+x]; bit == 1 {
					*v += 1 << plane
				} else {
					*v -= 1 << plane
				}
				d.set(x, y, refined)
			}
		}
	}
}

// cleanup is the cleanup pass.
func (d *blockDecoder) cleanup(plane int) {
	for top := 0; top < d.h; top += 4 {
		for x := range d.w {
			y := top
			if top+4 <= d.h && (d.at(x, top)|d.at(x, top+1)|d.at(x, top+2)|d.at(x, top+3))&(significant|visited|neighbours) == 0 {
				if d.mq.decode(runContext) == 0 {
					continue
				}
				y += d.mq.decode(uniformContext)<<1 | d.mq.decode(uniformContext)
				d.becomeSignificant(x, y, plane)
				y++
			}
			for ; y < min(top+4, d.h); y++ {
				f := d.at(x, y)
				if f&(significant|visited) == 0 && d.mq.decode(int(d.zero[f&neighbours])) == 1 {
					d.becomeSignificant(x, y, plane)
				}
			}
			for y := top; y < min(top+4, d.h); y++ {
				d.flags[(y+1)*(d.w+2)+x+1] &^= visited
			}
		}
	}
}
