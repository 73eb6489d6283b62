package synthetic

import (
	"image"
	"math"
)

// Sizes of shapes, from a scratch of a pixel to a missing fifth of the image.
const (
	// shortestScratch, longestScratch are fractions of the side. thinnestScratch and
	// thickestScratch are in pixels at referenceSide; thinnestScratch is also the
	// minimum at any side.
	shortestScratch, longestScratch  = 0.06, 0.8
	thinnestScratch, thickestScratch = 0.5, 5
	// A scratch has scratchPieces straight pieces. The standard deviation of the angle
	// between them, in radians, is at most strongestWobble.
	scratchPieces, strongestWobble = 8, 0.5

	// smallestEllipse, largestEllipse are the semi-major axis as a fraction of the side;
	// flattestEllipse is the smallest ratio of the axes.
	smallestEllipse, largestEllipse = 1.2 / referenceSide, 0.2
	flattestEllipse                 = 0.3
	// ruggedness is the standard deviation of the radius of a noisy rim, as a fraction
	// of the radius; ruggedSize is the size of its dents, in pixels at referenceSide.
	ruggedness, ruggedSize = 0.25, 8
	// sharpRim and softRim are the softness of a rim (see inside): sharpRim in pixels
	// at any side, softRim in pixels at referenceSide.
	sharpRim, softRim = 0.4, 1.5

	// shortestRectangle, longestRectangle are fractions of the side.
	shortestRectangle, longestRectangle = 0.03, 0.4

	// smallestWindow, largestWindow are the radius, as a fraction of the side, at which
	// the Gaussian window around islands is 1/e. Islands are the pixels where
	// islandWindow·window + noise > islandLevel: a frayed region in the middle. A larger
	// islandSharpness means a sharper rim.
	smallestWindow, largestWindow              = 0.06, 0.25
	islandWindow, islandLevel, islandSharpness = 3, 2.6, 8

	// rimEnd is the distance from the middle of a rim, as a multiple of its softness,
	// at which the opacity is treated as 0. The logistic function is 1/400 there.
	rimEnd = 6
	// denseEnough is the opacity that at least one pixel of a shape must exceed.
	// Otherwise, as when the shape is outside of the image, another one is drawn, at
	// most shapeTries in total.
	denseEnough, shapeTries = 0.3, 6
)

// shape is the outline of an anomaly.
type shape int

const (
	scratch shape = iota
	ellipse
	rectangle
	islands
	shapes // the number of shapes
)

// stencil is the position and the opacity of an anomaly.
type stencil struct {
	box     image.Rectangle // within the image
	opacity []float32       // of the pixels in the box, 0…1
}

// draw draws a random shape into the stencil.
func (gen *Generator) draw() (drawn shape) {
	for range gen.tries(shapeTries) {
		drawn = shape(gen.r.IntN(int(shapes)))
		switch drawn {
		case scratch:
			gen.scratch()
		case ellipse:
			gen.ellipse()
		case rectangle:
			gen.rectangle()
		case islands:
			gen.islands()
		}
		box := gen.stencil.box
		for i, a := range gen.stencil.opacity {
			if a > denseEnough && gen.allowed(box.Min.X+i%box.Dx(), box.Min.Y+i/box.Dx()) {
				return drawn
			}
		}
	}
	return drawn
}

// clearStencil resets the stencil to an opacity of 0, with a box of these coordinates
// clipped to the image.
func (gen *Generator) clearStencil(left, top, right, bottom float64) *stencil {
	box := image.Rect(int(math.Floor(left)), int(math.Floor(top)), int(math.Ceil(right))+1, int(math.Ceil(bottom))+1)
	t := &gen.stencil
	t.box = box.Intersect(gen.bounds())
	t.opacity = grown(t.opacity, t.box.Dx()*t.box.Dy())
	clear(t.opacity)
	return t
}

// centre returns a random point of the image, in pixels.
func (gen *Generator) centre() (x, y float64) {
	return gen.between(0, float64(gen.w)), gen.between(0, float64(gen.h))
}

// scratch draws a wobbly line.
func (gen *Generator) scratch() {
	var xs, ys [scratchPieces + 1]float64
	xs[0], ys[0] = gen.centre()
	angle, wobble := gen.between(0, 2*math.Pi), gen.between(0, strongestWobble)
	piece := gen.logUniform(shortestScratch, longestScratch) * gen.side / scratchPieces
	for i := range scratchPieces {
		angle += gen.r.NormFloat64() * wobble
		xs[i+1], ys[i+1] = xs[i]+math.Cos(angle)*piece, ys[i]+math.Sin(angle)*piece
	}
	width := max(thinnestScratch, gen.logUniform(thinnestScratch, thickestScratch)*gen.scale)
	reach := width/2 + 0.5 // half a pixel more for partly covered pixels
	left, top, right, bottom := xs[0], ys[0], xs[0], ys[0]
	for i, x := range xs {
		left, top, right, bottom = min(left, x), min(top, ys[i]), max(right, x), max(bottom, ys[i])
	}
	t := gen.clearStencil(left-reach, top-reach, right+reach, bottom+reach)
	for i := range scratchPieces {
		t.stroke(xs[i], ys[i], xs[i+1], ys[i+1], reach, min(1, width))
	}
}

// stroke adds a straight line of half-width reach, in pixels, with an opacity of at most
// most.
func (t *stencil) stroke(x0, y0, x1, y1, reach, most float64) {
	part := image.Rect(
		int(math.Floor(min(x0, x1)-reach)), int(math.Floor(min(y0, y1)-reach)),
		int(math.Ceil(max(x0, x1)+reach))+1, int(math.Ceil(max(y0, y1)+reach))+1,
	).Intersect(t.box)
	dx, dy := x1-x0, y1-y0
	squared := dx*dx + dy*dy // positive: the length is
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

// ellipse draws an ellipse with a smooth or noisy outline and a sharp or soft rim.
func (gen *Generator) ellipse() {
	radius := gen.logUniform(smallestEllipse, largestEllipse) * gen.side
	cx, cy := gen.centre()
	sin, cos := math.Sincos(gen.between(0, math.Pi))
	flat := gen.between(flattestEllipse, 1)
	rim := [...]float64{sharpRim, sharpRim, softRim * gen.scale, 0.3 * (radius + gen.scale)}[gen.r.IntN(4)]
	rim = max(rim, sharpRim)
	const furthest = 3 // limit of the noise, in standard deviations
	rugged := gen.r.IntN(2) == 0
	reach := radius + rimEnd*rim
	if rugged {
		reach += radius * ruggedness * furthest
	}
	t := gen.clearStencil(cx-reach, cy-reach, cx+reach, cy+reach)
	w := t.box.Dx()
	var noise []float32
	if rugged {
		noise = gen.noise(w, t.box.Dy(), max(1, ruggedSize*gen.scale))
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

// rectangle draws a rectangle aligned with the pixels, like a missing part or a label.
func (gen *Generator) rectangle() {
	side := gen.side
	w, h := gen.logUniform(shortestRectangle, longestRectangle)*side, gen.logUniform(shortestRectangle, longestRectangle)*side
	x, y := gen.centre()
	t := gen.clearStencil(math.Floor(x), math.Floor(y), math.Floor(x+w), math.Floor(y+h))
	for i := range t.opacity {
		t.opacity[i] = 1
	}
}

// islands draws a frayed region with specks around it.
func (gen *Generator) islands() {
	size := [...]float64{3, 6, 12}[gen.r.IntN(3)] * gen.scale
	radius := gen.between(smallestWindow, largestWindow) * gen.side
	cx, cy := gen.centre()
	// Beyond end radii the window is below 0.8 % of its height, and noise limited to
	// furthest stays below islandLevel.
	const end, furthest = 2.2, 2
	t := gen.clearStencil(cx-end*radius, cy-end*radius, cx+end*radius, cy+end*radius)
	w, h := t.box.Dx(), t.box.Dy()
	noise := gen.noise(w, h, max(1, size))
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

// inside returns the opacity of a pixel of a soft shape. depth is its distance inside of
// the rim, as a multiple of the rim's softness.
func inside(depth float64) float32 {
	switch {
	case depth >= rimEnd:
		return 1
	case depth <= -rimEnd:
		return 0
	}
	return float32(1 / (1 + math.Exp(-depth)))
}
