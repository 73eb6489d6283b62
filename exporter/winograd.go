package exporter

import "gorgonia.org/gorgonia"

// The layers of a training step on images in tiles. All they consist of are
// matrix products, and copies and sums of large pieces.
//
// A layer connects a large image x with a small one y of half its sides, by a
// kernel of three taps in stride 2. Along one axis, with e the even pixels of x
// and o the odd ones,
//
//	y[j] = o[j−1]·w₀ + e[j]·w₁ + o[j]·w₂
//
// that is three products for each y. Two neighbours y[2t] and y[2t+1] take five
// instead of six (Karatsuba, as in Winograd's F(2,2)), from the pairs (e, o)[2t]
// and (e, o)[2t+1]:
//
//	A = (e, o)[2t]           · (w₁, w₂)
//	B = o[2t+1]              · w₀
//	C = (e, o)[2t+1] − [2t]  · (w₁, w₂−w₀)
//	y[2t] = A[t] + B[t−1],  y[2t+1] = A[t] + B[t] + C[t]
//
// In two dimensions that is 25 products instead of 36, in nine matrix products,
// of rows' A, B, C with columns' A, B, C. So the convolution is: pairs of x
// (analyse), nine products with the kernel in that form, and their sums
// (synthesise). All else is the same transposed: what a transposed convolution
// computes, and the derivatives, which share what is computed of x and y.

// The three products of an axis.
const (
	first  = iota // A
	second        // B
	third         // C
)

// taps are, for an axis' product and phase, the kernel's taps it takes.
var taps = [3][2][]float32{
	first:  {{0, 1, 0}, {0, 0, 1}},
	second: {nil, {1, 0, 0}},
	third:  {{0, 1, 0}, {-1, 0, 1}},
}

// nine holds a value for each pair of an axis' products: [row][column].
type nine [3][3]value

// phases are those that a product takes, by code, in that order.
func phases(row, col int) []int {
	var out []int
	for phase := range 4 {
		if taps[row][phase&1] != nil && taps[col][phase>>1] != nil {
			out = append(out, phase)
		}
	}
	return out
}

// kernelForm is the matrix that takes the nine taps of a kernel to the 25 of the
// nine products; sizes are how many each has.
func (l *lowering) kernelForm() (form value, sizes []int) {
	var m []float32
	for row := range 3 {
		for col := range 3 {
			ps := phases(row, col)
			sizes = append(sizes, len(ps))
			for _, p := range ps {
				for _, r := range taps[row][p&1] {
					for _, c := range taps[col][p>>1] {
						m = append(m, r*c)
					}
				}
			}
		}
	}
	return l.floats([]int{len(m) / 9, 9}, m...), sizes
}

// kernels gives the kernel, small × large channels × 3 × 3, in the form of the
// nine products, each small × (phases · large).
func (l *lowering) kernels(w value) nine {
	small, large := w.shape[0], w.shape[1]
	return l.once("kernels", w, func() nine {
		form, sizes := l.kernelForm()
		all := l.product([]int{small, form.shape[0], large}, form, l.reshape(w, small, large, 9), false, true)
		var out nine
		for i, part := range l.split(all, 1, sizes...) {
			out[i/3][i%3] = l.reshape(part, small, sizes[i]*large)
		}
		return out
	})
}

// once computes something of a value the first time that it is asked for.
func (l *lowering) once(what string, x value, compute func() nine) nine {
	key := what + " " + x.name
	if v, ok := l.shared[key]; ok {
		return v
	}
	v := compute()
	l.shared[key] = v
	return v
}

// analyse gives the pairs of a large image, each (phases · channels) × pixels.
func (l *lowering) analyse(x value) nine {
	return l.once("analyse", x, func() nine {
		s := x.tiledShape()
		c, pixels := s[1], s[2]/4*s[3]
		all := l.reshape(x, 4, c, 4, pixels)
		pair := func(row, col int) value {
			// By the column's phase and the row's.
			return l.reshape(l.slice(all, 2, code(row, col), code(row, col)+1), 2, 2, c, pixels)
		}
		oddCol := func(v value) value { return l.slice(v, 0, 1, 2) }
		oddRow := func(v value) value { return l.slice(v, 1, 1, 2) }
		p00, p01, p10, p11 := pair(0, 0), pair(0, 1), pair(1, 0), pair(1, 1)
		var out nine
		out[first][first] = p00
		out[first][third] = l.sub(p01, p00)
		out[third][first] = l.sub(p10, p00)
		lower := l.sub(p11, p10)
		out[third][third] = l.sub(lower, out[first][third])
		out[first][second] = oddCol(p01)
		corner := oddCol(p11)
		out[third][second] = l.sub(corner, out[first][second])
		out[second][first] = oddRow(p10)
		out[second][third] = oddRow(lower)
		out[second][second] = oddRow(corner)
		for row := range 3 {
			for col := range 3 {
				out[row][col] = l.reshape(out[row][col], len(phases(row, col))*c, pixels)
			}
		}
		return out
	})
}

// restore is analyse transposed: it adds up the nine, each (phases · channels) ×
// pixels, to the large image of that shape, in tiles of so many bits.
func (l *lowering) restore(v nine, bits int, shape []int) value {
	out := value{shape: shape, bits: bits}
	s := out.tiledShape()
	c, pixels := s[1], s[2]/4*s[3]
	part := func(row, col int) value {
		rows, cols := 2, 2
		if row == second {
			rows = 1
		}
		if col == second {
			cols = 1
		}
		return l.reshape(v[row][col], cols, rows, c, pixels)
	}
	oddCol := func(v value) value { return l.padded(v, 0, 1, 0) }
	oddRow := func(v value) value { return l.padded(v, 1, 1, 0) }
	cc, ca := part(third, third), part(third, first)
	cb, bc := part(third, second), part(second, third)
	right, below := l.sub(part(first, third), cc), l.sub(ca, cc)
	p00 := l.sub(l.sub(part(first, first), right), ca)
	p01 := l.sum(right, oddCol(l.sub(part(first, second), cb)))
	p10 := l.sum(below, oddRow(l.sub(part(second, first), bc)))
	p11 := l.sum(cc, oddCol(l.sum(cb, oddRow(part(second, second)))), oddRow(bc))
	pairs := make([]value, 4)
	for row, r := range [][]value{{p00, p01}, {p10, p11}} {
		for col, p := range r {
			pairs[code(row, col)] = l.reshape(p, 4*c, 1, pixels)
		}
	}
	return l.asTiles(l.concat(1, pairs...), bits, shape...)
}

// synthesise adds up the nine products, each channels × pixels, to the small
// image of that shape, in tiles of so many bits.
func (l *lowering) synthesise(m nine, bits int, shape []int) value {
	out := value{shape: shape, bits: bits}
	s := out.tiledShape()
	c, classes := s[1], s[2]
	n, h, w := out.grid()
	before := func(v value, rows, cols int) value {
		return l.neighbour(v, bits-1, n, h, w, -rows, -cols)
	}
	for row := range m {
		for col := range m[row] {
			m[row][col] = l.reshape(m[row][col], c, classes, s[3])
		}
	}
	var rows [2][3]value
	for col := range 3 {
		rows[0][col] = l.sum(m[first][col], before(m[second][col], 1, 0))
		rows[1][col] = l.sum(m[first][col], m[second][col], m[third][col])
	}
	pixels := make([]value, 4)
	for row, r := range rows {
		pixels[code(row, 0)] = l.sum(r[first], before(r[second], 0, 1))
		pixels[code(row, 1)] = l.sum(r[first], r[second], r[third])
	}
	return l.asTiles(l.concat(0, pixels...), bits, shape...)
}

// distribute is synthesise transposed: what each of the nine products has of a
// small image, channels × pixels.
func (l *lowering) distribute(y value) nine {
	return l.once("distribute", y, func() nine {
		s := y.tiledShape()
		c, classes := s[1], s[2]
		n, h, w := y.grid()
		after := func(v value, rows, cols int) value {
			return l.neighbour(v, y.bits-1, n, h, w, rows, cols)
		}
		pixels := l.split(y.is(s...), 0, 1, 1, 1, 1)
		for i, v := range pixels {
			pixels[i] = l.reshape(v, c, classes, s[3])
		}
		var rows [2][3]value
		for row := range rows {
			left, right := pixels[code(row, 0)], pixels[code(row, 1)]
			rows[row] = [3]value{l.sum(left, right), l.sum(after(left, 0, 1), right), right}
		}
		var out nine
		for col := range 3 {
			above, below := rows[0][col], rows[1][col]
			for row, v := range [3]value{l.sum(above, below), l.sum(after(above, 1, 0), below), below} {
				out[row][col] = l.reshape(v, c, classes*s[3])
			}
		}
		return out
	})
}

// down computes the small image from the large one: a convolution, with a bias,
// or a transposed convolution's derivative, without.
func (l *lowering) down(n *gorgonia.Node, in []value) value {
	x, w := in[0], in[1]
	if w.shape[1] < fewChannels {
		return l.downDirect(n, in)
	}
	k := l.kernels(w)
	v := l.analyse(x)
	var m nine
	for row := range 3 {
		for col := range 3 {
			shape := []int{w.shape[0], v[row][col].shape[1]}
			m[row][col] = l.product(shape, k[row][col], v[row][col], false, false)
			if row == first && col == first && len(in) > 2 {
				// Each pixel has this product in it once: and so the bias.
				m[row][col] = l.op("Add", shape, []value{m[row][col], l.reshape(in[2], w.shape[0], 1)})
			}
		}
	}
	return l.synthesise(m, x.bits-1, n.Shape())
}

// up computes the large image from the small one: a transposed convolution, with
// a bias, or a convolution's derivative, without.
func (l *lowering) up(n *gorgonia.Node, in []value) value {
	y, w := in[0], in[1]
	var x value
	if w.shape[1] < fewChannels {
		x = l.upDirect(n, in)
	} else {
		k := l.kernels(w)
		d := l.distribute(y)
		var v nine
		for row := range 3 {
			for col := range 3 {
				v[row][col] = l.product([]int{k[row][col].shape[1], d[row][col].shape[1]}, k[row][col], d[row][col], true, false)
			}
		}
		x = l.restore(v, y.bits+1, n.Shape())
	}
	if len(in) > 2 {
		bias := l.reshape(in[2], w.shape[1], 1, 1)
		x.name = l.op("Add", nil, []value{x, bias}).name
	}
	return x
}

// correlate is the derivative with regard to the kernel.
func (l *lowering) correlate(n *gorgonia.Node, y, x value) value {
	s := n.Shape()
	small, large := s[0], s[1]
	if large < fewChannels {
		return l.correlateDirect(n, y, x)
	}
	d, v := l.distribute(y), l.analyse(x)
	form, sizes := l.kernelForm()
	parts := make([]value, 0, 9)
	for row := range 3 {
		for col := range 3 {
			m := l.product([]int{small, v[row][col].shape[0]}, d[row][col], v[row][col], false, true)
			parts = append(parts, l.reshape(m, small, sizes[len(parts)], large))
		}
	}
	all := l.concat(1, parts...)
	return l.reshape(l.product([]int{small, large, 9}, all, form, true, false), s...)
}

// fewChannels is up to how many channels of the large image a layer is computed
// directly. The products are small then, and what the nine of them have to be
// added up to is most of the time.
const fewChannels = 8

// columns is what each tap reads of a large image: (channels · 9) × pixels of
// the small image.
func (l *lowering) columns(x value) value {
	return l.once("columns", x, func() nine {
		s := x.tiledShape()
		c := s[1]
		n, h, w := x.grid()
		phases := l.split(x.is(s...), 0, 1, 1, 1, 1)
		for i, v := range phases {
			phases[i] = l.reshape(v, c, s[2], s[3])
		}
		before := func(v value, rows, cols int) value { return l.neighbour(v, x.bits-1, n, h, w, -rows, -cols) }
		ee, eo, oe, oo := phases[code(0, 0)], phases[code(0, 1)], phases[code(1, 0)], phases[code(1, 1)]
		up := before(oo, 1, 0)
		read := []value{
			before(up, 0, 1), before(oe, 1, 0), up,
			before(eo, 0, 1), ee, eo,
			before(oo, 0, 1), oe, oo,
		}
		for i, v := range read {
			read[i] = l.reshape(v, c, 1, s[2]*s[3])
		}
		return nine{{l.reshape(l.concat(1, read...), c*9, s[2]*s[3])}}
	})[0][0]
}

// channelsFirst brings a small image to channels × pixels.
func (l *lowering) channelsFirst(y value) value {
	return l.once("channels first", y, func() nine {
		s := y.tiledShape()
		t := l.transpose(l.reshape(y, 4, s[1], s[2]*s[3]), 1, 0, 2)
		return nine{{l.reshape(t, s[1], 4*s[2]*s[3])}}
	})[0][0]
}

func (l *lowering) downDirect(n *gorgonia.Node, in []value) value {
	x, w := in[0], in[1]
	small, large := w.shape[0], w.shape[1]
	cols := l.columns(x)
	kernel := l.reshape(w, small, large*9)
	shape := []int{small, cols.shape[1]}
	var m value
	if len(in) > 2 {
		m = l.op("Gemm", shape, []value{kernel, cols, l.reshape(in[2], small, 1)})
	} else {
		m = l.product(shape, kernel, cols, false, false)
	}
	return l.asTiles(l.transpose(l.reshape(m, small, 4, shape[1]/4), 1, 0, 2), x.bits-1, n.Shape()...)
}

func (l *lowering) upDirect(n *gorgonia.Node, in []value) value {
	y, w := in[0], in[1]
	small, large := w.shape[0], w.shape[1]
	flat := l.channelsFirst(y)
	bits := y.bits + 1
	out := value{shape: n.Shape(), bits: bits}
	s := out.tiledShape()
	grids, h, wd := out.grid()
	m := l.product([]int{large * 9, flat.shape[1]}, l.reshape(w, small, large*9), flat, true, false)
	read := l.split(l.reshape(m, large, 9, s[2]*s[3]), 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	for i, v := range read {
		read[i] = l.reshape(v, large, s[2], s[3])
	}
	after := func(v value, rows, cols int) value { return l.neighbour(v, bits-1, grids, h, wd, rows, cols) }
	phases := make([]value, 4)
	phases[code(0, 0)] = read[4]
	phases[code(1, 0)] = l.sum(read[7], after(read[1], 1, 0))
	phases[code(0, 1)] = l.sum(read[5], after(read[3], 0, 1))
	phases[code(1, 1)] = l.sum(read[8], after(read[2], 1, 0), after(l.sum(read[6], after(read[0], 1, 0)), 0, 1))
	return l.asTiles(l.concat(0, phases...), bits, n.Shape()...)
}

func (l *lowering) correlateDirect(n *gorgonia.Node, y, x value) value {
	flat, cols := l.channelsFirst(y), l.columns(x)
	m := l.product([]int{flat.shape[0], cols.shape[0]}, flat, cols, false, true)
	return l.reshape(m, n.Shape()...)
}
