package tiling

// Plane collects the values of tiles, each Side×Side, into one plane of W×H values for the
// whole image, which may have fewer values than the image has pixels. Where tiles overlap,
// a value is the weighted mean of theirs; a tile's weight falls to zero towards each of its
// edges that another tile overlaps, so that no seam is visible.
type Plane struct {
	W, H   int
	Values []float32

	grid Grid
	x, y []axis // by column and row of tiles
}

// axis is the part of a plane that a tile covers, along one axis: the values from first on.
// at is the tile's pixel of each, and weight its weight in the mean.
type axis struct {
	first  int
	at     []int
	weight []float32
}

// NewPlane returns a plane of w×h values for the image of a grid, all zero.
func NewPlane(g Grid, w, h int) *Plane {
	return &Plane{W: w, H: h, Values: make([]float32, w*h), grid: g, x: axes(g.Xs, g.Side, g.W, w), y: axes(g.Ys, g.Side, g.H, h)}
}

// axes returns the axis of each tile that begins at one of the starts, along n pixels that
// become m values.
func axes(starts []int, side, n, m int) []axis {
	out := make([]axis, len(starts))
	ramps := make([][]float32, len(starts))
	for i, s := range starts {
		before, after := 0, 0 // pixels shared with the neighbours
		if i > 0 {
			before = starts[i-1] + side - s
		}
		if i < len(starts)-1 {
			after = s + side - starts[i+1]
		}
		ramps[i] = ramp(side, before, after)
	}
	for v := range m {
		pixel := (2*v + 1) * n / (2 * m) // that contains the value's centre
		sum := float32(0)
		for i, s := range starts {
			if pixel >= s && pixel < s+side {
				sum += ramps[i][pixel-s]
			}
		}
		for i, s := range starts {
			if pixel < s || pixel >= s+side {
				continue
			}
			a := &out[i]
			if len(a.at) == 0 {
				a.first = v
			}
			a.at = append(a.at, pixel-s)
			a.weight = append(a.weight, ramps[i][pixel-s]/sum)
		}
	}
	return out
}

// ramp returns the weights of a tile's pixels along an axis, before they are divided by the
// sum over all tiles: 1, and less among the first `before` and the last `after` pixels.
func ramp(side, before, after int) []float32 {
	out := make([]float32, side)
	for i := range out {
		w := float32(1)
		if i < before {
			w = min(w, (float32(i)+0.5)/float32(before))
		}
		if i >= side-after {
			w = min(w, (float32(side-i)-0.5)/float32(after))
		}
		out[i] = w
	}
	return out
}

// Add adds the values of tile i of those that are used, Side×Side, with their weights.
func (p *Plane) Add(i int, values []float32) {
	p.AddFunc(i, func(at int) float32 { return values[at] })
}

// AddFunc is Add for values that a function returns, by their index in the tile.
func (p *Plane) AddFunc(i int, value func(at int) float32) {
	i = p.grid.Place(i)
	x, y := p.x[i%len(p.x)], p.y[i/len(p.x)]
	for r, row := range y.at {
		out := p.Values[(y.first+r)*p.W+x.first:]
		for c, column := range x.at {
			out[c] += y.weight[r] * x.weight[c] * value(row*p.grid.Side+column)
		}
	}
}
