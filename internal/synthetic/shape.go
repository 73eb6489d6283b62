package synthetic

import (
	"image"
	"math"
)

// Sizes of shapes, from a pixel that is scratched to a fifth of the image that is
// missing.
const (
	// shortestScratch, longestScratch are parts of the side, thinnestScratch and
	// thickestScratch pixels of referenceSide. None is thinner than half of a
	// pixel.
	shortestScratch, longestScratch  = 0.06, 0.8
	thinnestScratch, thickestScratch = 0.5, 5
	// scratchPieces are straight; from one to the next a scratch turns by a
	// deviation of up to strongestWobble.
	scratchPieces, strongestWobble = 8, 0.5

	// smallestEllipse, largestEllipse are half of the longer axis, as parts of the
	// side; flattestEllipse is the shorter by the longer one.
	smallestEllipse, largestEllipse = 1.2 / referenceSide, 0.2
	flattestEllipse                 = 0.3
	// ruggedness is by how much of its radius a noisy rim goes in and out, with
	// ruggedSize pixels of referenceSide between dents.
	ruggedness, ruggedSize = 0.25, 8
	// sharpRim is the softness of a rim that looks sharp on the grid of pixels of
	// any image, softRim that of a blurred one, of an image of referenceSide.
	sharpRim, softRim = 0.4, 1.5

	// shortestRectangle, longestRectangle are sides.
	shortestRectangle, longestRectangle = 0.03, 0.4

	// smallestWindow, largestWindow is where a Gaussian window around islands has
	// fallen to 1/e. They are where islandWindow times the window and noise exceed
	// islandLevel, with a rim that is as sharp as islandSharpness: a patch in the
	// middle that frays.
	smallestWindow, largestWindow              = 0.06, 0.25
	islandWindow, islandLevel, islandSharpness = 3, 2.6, 8

	// rimEnd is how many times its softness from the middle of a rim there is
	// nothing left of it: 1/400 of the opacity.
	rimEnd = 6
	// denseEnough is the opacity that a shape reaches somewhere unless it is drawn
	// anew, shapeTries times at most: one may lie between the pixels or leave the
	// image.
	denseEnough, shapeTries = 0.3, 6
)

// shape is the outline of an anomaly.
type shape int

const (
	scratch shape = iota
	ellipse
	rectangle
	islands
	shapes // how many there are
)

// stencil is where an anomaly lies, and how much it covers of each pixel there.
type stencil struct {
	box     image.Rectangle // within the image
	opacity []float32       // of the pixels in the box, 0…1
}

// draw makes a shape and puts it into the stencil.
func (p *Painter) draw() (drawn shape) {
	for range shapeTries {
		drawn = shape(p.r.IntN(int(shapes)))
		switch drawn {
		case scratch:
			p.scratch()
		case ellipse:
			p.ellipse()
		case rectangle:
			p.rectangle()
		case islands:
			p.islands()
		}
		for _, a := range p.stencil.opacity {
			if a > denseEnough {
				return drawn
			}
		}
	}
	return drawn
}

// lay makes room for a shape between these coordinates; what lies outside of the
// image is cut off.
func (p *Painter) lay(left, top, right, bottom float64) *stencil {
	box := image.Rect(int(math.Floor(left)), int(math.Floor(top)), int(math.Ceil(right))+1, int(math.Ceil(bottom))+1)
	t := &p.stencil
	t.box = box.Intersect(image.Rect(0, 0, p.side, p.side))
	t.opacity = grown(t.opacity, t.box.Dx()*t.box.Dy())
	clear(t.opacity)
	return t
}

// centre draws a point of the image, in pixels.
func (p *Painter) centre() (x, y float64) {
	side := float64(p.side)
	return p.between(0, side), p.between(0, side)
}

// scratch draws a line that wobbles.
func (p *Painter) scratch() {
	var xs, ys [scratchPieces + 1]float64
	xs[0], ys[0] = p.centre()
	angle, wobble := p.between(0, 2*math.Pi), p.between(0, strongestWobble)
	piece := p.logUniform(shortestScratch, longestScratch) * float64(p.side) / scratchPieces
	for i := range scratchPieces {
		angle += p.r.NormFloat64() * wobble
		xs[i+1], ys[i+1] = xs[i]+math.Cos(angle)*piece, ys[i]+math.Sin(angle)*piece
	}
	width := max(thinnestScratch, p.logUniform(thinnestScratch, thickestScratch)*p.scale)
	reach := width/2 + 0.5 // half of a pixel more, where it covers only a part
	left, top, right, bottom := xs[0], ys[0], xs[0], ys[0]
	for i, x := range xs {
		left, top, right, bottom = min(left, x), min(top, ys[i]), max(right, x), max(bottom, ys[i])
	}
	t := p.lay(left-reach, top-reach, right+reach, bottom+reach)
	for i := range scratchPieces {
		t.stroke(xs[i], ys[i], xs[i+1], ys[i+1], reach, min(1, width))
	}
}

// stroke adds a straight piece of a line, which covers no more than most of a
// pixel.
func (t *stencil) stroke(x0, y0, x1, y1, reach, most float64) {
	part := image.Rect(
		int(math.Floor(min(x0, x1)-reach)), int(math.Floor(min(y0, y1)-reach)),
		int(math.Ceil(max(x0, x1)+reach))+1, int(math.Ceil(max(y0, y1)+reach))+1,
	).Intersect(t.box)
	dx, dy := x1-x0, y1-y0
	squared := dx*dx + dy*dy // above 0: a scratch has a length
	for y := part.Min.Y; y < part.Max.Y; y++ {
		line := t.opacity[(y-t.box.Min.Y)*t.box.Dx():]
		for x := part.Min.X; x < part.Max.X; x++ {
			u, v := float64(x)+0.5-x0, float64(y)+0.5-y0
			along := min(max((u*dx+v*dy)/squared, 0), 1)
			u, v = u-along*dx, v-along*dy
			if a := float32(min(most, reach-math.Sqrt(u*u+v*v))); a > line[x-t.box.Min.X] {
				line[x-t.box.Min.X] = a
			}
		}
	}
}

// ellipse draws a spot, of a smooth or a noisy outline, of a sharp or a soft rim.
func (p *Painter) ellipse() {
	radius := p.logUniform(smallestEllipse, largestEllipse) * float64(p.side)
	cx, cy := p.centre()
	sin, cos := math.Sincos(p.between(0, math.Pi))
	flat := p.between(flattestEllipse, 1)
	rim := [...]float64{sharpRim, sharpRim, softRim * p.scale, 0.3 * (radius + p.scale)}[p.r.IntN(4)]
	rim = max(rim, sharpRim)
	const furthest = 3 // deviations of the noise
	rugged := p.r.IntN(2) == 0
	reach := radius + rimEnd*rim
	if rugged {
		reach += radius * ruggedness * furthest
	}
	t := p.lay(cx-reach, cy-reach, cx+reach, cy+reach)
	w := t.box.Dx()
	var noise []float32
	if rugged {
		noise = p.noise(w, t.box.Dy(), max(1, ruggedSize*p.scale))
	}
	for i := range t.opacity {
		x, y := float64(t.box.Min.X+i%w)+0.5-cx, float64(t.box.Min.Y+i/w)+0.5-cy
		u, v := x*cos+y*sin, (y*cos-x*sin)/flat
		edge := radius
		if rugged {
			edge += radius * ruggedness * min(max(float64(noise[i]), -furthest), furthest)
		}
		t.opacity[i] = inside((edge - math.Sqrt(u*u+v*v)) / rim)
	}
}

// rectangle draws one along the pixels, as a part that is missing or a label.
func (p *Painter) rectangle() {
	side := float64(p.side)
	w, h := p.logUniform(shortestRectangle, longestRectangle)*side, p.logUniform(shortestRectangle, longestRectangle)*side
	x, y := p.centre()
	t := p.lay(math.Floor(x), math.Floor(y), math.Floor(x+w), math.Floor(y+h))
	for i := range t.opacity {
		t.opacity[i] = 1
	}
}

// islands draws a frayed patch with specks around it.
func (p *Painter) islands() {
	size := [...]float64{3, 6, 12}[p.r.IntN(3)] * p.scale
	radius := p.between(smallestWindow, largestWindow) * float64(p.side)
	cx, cy := p.centre()
	// Further out the window adds nothing: 0.8 % of its height. Noise alone must
	// not exceed the level there.
	const end, furthest = 2.2, 2
	t := p.lay(cx-end*radius, cy-end*radius, cx+end*radius, cy+end*radius)
	w, h := t.box.Dx(), t.box.Dy()
	noise := p.noise(w, h, max(1, size))
	bell := func(first, n int, centre float64) []float64 {
		b := make([]float64, n)
		for i := range b {
			u := (float64(first+i) + 0.5 - centre) / radius
			b[i] = math.Exp(-u * u)
		}
		return b
	}
	across, down := bell(t.box.Min.X, w, cx), bell(t.box.Min.Y, h, cy)
	for i := range t.opacity {
		v := min(float64(noise[i]), furthest) + islandWindow*across[i%w]*down[i/w] - islandLevel
		t.opacity[i] = inside(v * islandSharpness)
	}
}

// inside is how much of a pixel a soft shape covers, from how many times the
// softness of its rim lie between the two.
func inside(depth float64) float32 {
	switch {
	case depth >= rimEnd:
		return 1
	case depth <= -rimEnd:
		return 0
	}
	return float32(1 / (1 + math.Exp(-depth)))
}
