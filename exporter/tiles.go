package exporter

import (
	"fmt"
	"slices"
	"strings"

	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// A training step keeps its images in tiles: a layout in which what a layer of
// stride 2 reads for all pixels at once lies in one piece. NCHW scatters it, and
// sorting it out anew for each layer took a sixth of the step.
//
// Rows and columns are told apart by the lowest bits of their index. With k bits
// the pixels fall into 4ᵏ classes, each a grid of H/2ᵏ × W/2ᵏ pixels. The lowest
// bit of row and column is the phase: what a kernel's tap reads is one phase, of
// this pixel or of its neighbour. The layout is
//
//	phase (4) × channel × the other bits (4 × 4 × …) × grid × image
//
// where each 4 is a column's bit and a row's bit: 2·column + row, the lower bits
// outside. A layer that halves the image drops the phase, and the next 4 takes
// its place. A neighbour's pixel lies in another class at the same place of the
// grid; only where the class wraps around, at the neighbouring one.
//
// Such a value's shape is still N×C×H×W, what it means; value.bits is k.

// pixelBits is how many bits the classes of a network's images take: one for
// each halving, and one for pairs of what is left; 0 where the sides do not
// divide by so much.
func pixelBits(halvings, h, w int) int {
	if unit := 2 << halvings; h%unit == 0 && w%unit == 0 {
		return halvings + 1
	}
	return 0
}

// worksOnTiles returns an error unless the operator can be lowered with operands
// in tiles: layers that halve or double the sides by a kernel of 3, what works
// element by element on operands in the same tiles or of one element, and sums.
func worksOnTiles(op gorgonia.Op, in []value) error {
	switch op.(type) {
	case network.Conv2D, network.ConvTranspose2D, network.ConvInputGrad, network.ConvTransposeInputGrad, network.ConvWeightGrad:
		if w, err := windowOf(op); err != nil || w.Kernel != 3 || w.Stride != 2 || w.Padding != 1 {
			return fmt.Errorf("%w: %v of images in tiles", ErrNoLowering, op)
		}
		if _, ok := op.(network.ConvWeightGrad); ok && in[1].bits != in[0].bits+1 {
			return fmt.Errorf("%w: %v of images in tiles and others", ErrNoLowering, op)
		}
		return nil
	case network.ChannelSum:
		return nil
	case network.ReLU, network.ReLUGrad:
	default:
		if name := fmt.Sprint(op); strings.HasPrefix(name, "Reshape") || strings.HasPrefix(name, "Repeat") {
			return fmt.Errorf("%w: %v of images in tiles", ErrNoLowering, op)
		}
	}
	for _, v := range in[1:] {
		single := func(v value) bool { return !slices.ContainsFunc(v.shape, func(d int) bool { return d != 1 }) }
		if v.bits != in[0].bits && !single(v) && !single(in[0]) {
			return fmt.Errorf("%w: %v of images in tiles and others", ErrNoLowering, op)
		}
	}
	return nil
}

// code is a 4 of the layout from its bits.
func code(row, col int) int { return 2*col + row }

// place is the row and the column of class i of 4ᵏ.
func place(i, bits int) (row, col int) {
	for b := range bits {
		digit := i >> (2 * (bits - 1 - b)) & 3
		row |= digit & 1 << b
		col |= digit >> 1 << b
	}
	return row, col
}

// classAt is the class at a row and a column.
func classAt(row, col, bits int) int {
	i := 0
	for b := range bits {
		i = i<<2 | code(row>>b&1, col>>b&1)
	}
	return i
}

// grid is the size of a class: images, rows, columns.
func (v value) grid() (n, h, w int) { return v.shape[0], v.shape[2] >> v.bits, v.shape[3] >> v.bits }

// tiledShape is the tensor's own shape: phases, channels, other classes, grid.
func (v value) tiledShape() []int {
	n, h, w := v.grid()
	return []int{4, v.shape[1], 1 << (2 * (v.bits - 1)), n * h * w}
}

// asTiles gives a tensor, of any shape with the elements in their order, the
// meaning of images in tiles.
func (l *lowering) asTiles(x value, bits int, shape ...int) value {
	v := value{shape: shape, bits: bits}
	v.name = l.reshape(x, v.tiledShape()...).name
	return v
}

// tile sorts an image's pixels into tiles.
func (l *lowering) tile(x value, bits int) value {
	out := value{shape: x.shape, bits: bits}
	n, h, w := out.grid()
	c, side, classes := x.shape[1], 1<<bits, 1<<(2*bits)
	sorted := l.op("SpaceToDepth", []int{n, classes * c, h, w}, []value{x}, intAttr("blocksize", side))
	order := make([]int, 0, classes*c)
	for phase := range 4 {
		for channel := range c {
			for rest := range classes / 4 {
				row, col := place(phase*classes/4+rest, bits)
				order = append(order, (row*side+col)*c+channel)
			}
		}
	}
	rows := l.gather(l.reshape(sorted, n, classes*c, h*w), 1, order)
	return l.asTiles(l.transpose(l.reshape(rows, n, classes*c*h*w), 1, 0), bits, x.shape...)
}

// neighbour gives for each class of x, channels × 4ᵏ × grid, what lies by steps
// rows and columns away, one of them 1 or −1; beyond the image's edge zero. n, h
// and w are the grid's.
func (l *lowering) neighbour(x value, bits, n, h, w, rows, cols int) value {
	c, side := x.shape[0], 1<<bits
	// What wraps around is at the neighbouring place of the grid.
	beyond := func(v value) value {
		// Rows and columns are shifted alike, in the one piece that a grid is:
		// shifted in lines of a few pixels, this took four times as long. What
		// comes into a line from the next is taken out.
		steps := (rows*w + cols) * n
		grids := l.reshape(v, v.shape[0]*v.shape[1], h*w*n)
		moved := l.op("Pad", grids.shape, []value{grids, l.ints(0, -steps, 0, steps)})
		if cols != 0 {
			within := make([]float32, h*w*n)
			for i := range within {
				if col := i/n%w + cols; col >= 0 && col < w {
					within[i] = 1
				}
			}
			moved = l.op("Mul", grids.shape, []value{moved, l.floats([]int{h * w * n}, within...)})
		}
		return l.reshape(moved, v.shape...)
	}
	if bits == 0 {
		return beyond(x)
	}
	classes := side * side
	var wrapped, order []int
	for i := range classes {
		row, col := place(i, bits)
		row, col = row+rows, col+cols
		from := classAt(row&(side-1), col&(side-1), bits)
		if row < 0 || col < 0 || row == side || col == side {
			order = append(order, classes+len(wrapped))
			wrapped = append(wrapped, from)
		} else {
			order = append(order, from)
		}
	}
	all := l.concat(1, x, beyond(l.gather(x, 1, wrapped)))
	return l.gather(all, 1, order[:classes:classes]).is(c, classes, n*h*w)
}

// is asserts a shape that is known anyway; it keeps the code that follows
// readable.
func (v value) is(shape ...int) value {
	v.shape = shape
	return v
}

// tiledChannelSum adds up each channel of images in tiles.
func (l *lowering) tiledChannelSum(n *gorgonia.Node, x value) value {
	s := x.tiledShape()
	rows := l.op("ReduceSum", s[:2], []value{l.reshape(x, s[0], s[1], s[2]*s[3]), l.ints(2)}, intAttr("keepdims", 0))
	return l.op("ReduceSum", n.Shape(), []value{rows, l.ints(0)}, intAttr("keepdims", 0))
}

// The operators that the layout is worked with, on tensors of any meaning.

// reshape costs nothing but its place in the graph, of which there are hundreds:
// a shape of a shape is one of the tensor behind both.
func (l *lowering) reshape(x value, shape ...int) value {
	if behind, ok := l.reshaped[x.name]; ok {
		x = behind
	}
	if x.bits == 0 && slices.Equal(x.shape, shape) {
		return x
	}
	out := l.op("Reshape", shape, []value{x, l.ints(shape...)})
	l.reshaped[out.name] = x
	return out
}

func (l *lowering) transpose(x value, perm ...int) value {
	shape := make([]int, len(perm))
	for i, a := range perm {
		shape[i] = x.shape[a]
	}
	return l.op("Transpose", shape, []value{x}, intsAttr("perm", perm...))
}

func (l *lowering) slice(x value, axis, from, to int) value {
	shape := slices.Clone(x.shape)
	shape[axis] = to - from
	return l.op("Slice", shape, []value{x, l.ints(from), l.ints(to), l.ints(axis)})
}

func (l *lowering) gather(x value, axis int, order []int) value {
	shape := slices.Clone(x.shape)
	shape[axis] = len(order)
	return l.op("Gather", shape, []value{x, l.ints(order...)}, intAttr("axis", axis))
}

func (l *lowering) concat(axis int, xs ...value) value {
	shape := slices.Clone(xs[0].shape)
	for _, x := range xs[1:] {
		shape[axis] += x.shape[axis]
	}
	return l.op("Concat", shape, xs, intAttr("axis", axis))
}

func (l *lowering) split(x value, axis int, sizes ...int) []value {
	shapes := make([][]int, len(sizes))
	for i, s := range sizes {
		shapes[i] = slices.Clone(x.shape)
		shapes[i][axis] = s
	}
	return l.ops("", "Split", shapes, []value{x, l.ints(sizes...)}, intAttr("axis", axis))
}

// sum adds up tensors of one shape.
func (l *lowering) sum(xs ...value) value {
	op := "Sum"
	if len(xs) == 2 {
		op = "Add"
	}
	return l.op(op, xs[0].shape, xs)
}

func (l *lowering) sub(x, y value) value { return l.op("Sub", x.shape, []value{x, y}) }

// padded puts before and behind an axis so many zeros.
func (l *lowering) padded(x value, axis, before, behind int) value {
	shape := slices.Clone(x.shape)
	shape[axis] += before + behind
	pads := make([]int, 2*len(shape))
	pads[axis], pads[len(shape)+axis] = before, behind
	return l.op("Pad", shape, []value{x, l.ints(pads...)})
}

// product is a matrix product, of batches of matrices too; transA and transB
// say which factor is taken transposed.
func (l *lowering) product(shape []int, a, b value, transA, transB bool) value {
	if !transA && !transB {
		return l.op("MatMul", shape, []value{a, b})
	}
	var attrs []attribute
	if transA {
		attrs = append(attrs, intAttr("transA", 1))
	}
	if transB {
		attrs = append(attrs, intAttr("transB", 1))
	}
	l.extended = true
	return l.domainOp(microsoft, "FusedMatMul", shape, []value{a, b}, attrs...)
}

// inTiles says that the tensor holds images in tiles of so many bits.
func (v value) inTiles(bits int) value {
	v.bits = bits
	return v
}
