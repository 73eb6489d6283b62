package synthetic

import (
	"image"
	"math"
	"math/rand/v2"
)

const (
	// referenceSide is the image side, in pixels, for which lengths are specified. They
	// are proportional to the side, which is the geometric mean of width and height.
	referenceSide = 128
	// secondAnomaly is the share of images with two anomalies.
	secondAnomaly = 0.3
	// visibleTries is the maximum number of attempts to generate a visible anomaly. A
	// black spot on black is invisible.
	visibleTries = 6
	// insideTries is the factor of the numbers of attempts if only a part of the image may
	// have anomalies.
	insideTries = 10
)

// anomaly describes a generated anomaly.
type anomaly struct {
	shape      shape
	appearance appearance
	box        image.Rectangle // all changed pixels are inside
}

// Generator is a synthetic anomaly generator. It must not be used concurrently.
type Generator struct {
	r      *rand.Rand
	w, h   int
	side   float64 // geometric mean of w and h
	scale  float64 // side divided by referenceSide
	inside []byte  // by pixel: 0 where there may be no anomaly; nil for none

	anomalies []anomaly // of the latest image
	stencil   stencil   // of the current anomaly
	field     []float32
	lattice   []float32
	before    []byte
	blur      blur
	changed   []int32
	columns   []int32
}

// NewGenerator returns a Generator for images of w×h pixels. Its results depend only on the
// random numbers and the images. Unless inside is nil, it has w·h bytes, and anomalies are
// only where it is not 0.
func NewGenerator(r *rand.Rand, w, h int, inside []byte) *Generator {
	side := math.Sqrt(float64(w * h))
	return &Generator{r: r, w: w, h: h, side: side, scale: side / referenceSide, inside: inside}
}

// tries returns the number of attempts.
func (gen *Generator) tries(n int) int {
	if gen.inside != nil {
		n *= insideTries
	}
	return n
}

// bounds returns the rectangle of the image.
func (gen *Generator) bounds() image.Rectangle { return image.Rect(0, 0, gen.w, gen.h) }

// allowed reports whether there may be an anomaly at a pixel.
func (gen *Generator) allowed(x, y int) bool { return gen.inside == nil || gen.inside[y*gen.w+x] != 0 }

// Generate copies image into out, adds one or two anomalies, and sets mask (w×h) to
// the visibility, 0…1, of the change at each pixel. other is another normal image, the
// source of pasted texture. Images are w×h×3 bytes; out must not overlap the
// others. The mask is 0 everywhere when no attempt resulted in a visible anomaly.
func (gen *Generator) Generate(out []byte, mask []float32, image, other []byte) {
	for range gen.tries(visibleTries) {
		copy(out, image)
		gen.anomalies = gen.anomalies[:0]
		gen.add(out, other)
		if gen.r.Float64() < secondAnomaly {
			gen.add(out, other)
		}
		if gen.setMask(mask, image, out) {
			return
		}
	}
}

// add adds one anomaly.
func (gen *Generator) add(out, other []byte) {
	shape := gen.draw()
	appearance := appearances[gen.r.IntN(len(appearances))]
	gen.anomalies = append(gen.anomalies, anomaly{shape, appearance, gen.stencil.box})
	if !gen.stencil.box.Empty() {
		gen.apply(out, gen.texture(appearance, out, other))
	}
}

// apply blends a texture into the image, with the opacity of the stencil.
func (gen *Generator) apply(out []byte, at texture) {
	box, i := gen.stencil.box, 0
	for y := box.Min.Y; y < box.Max.Y; y++ {
		v := out[(y*gen.w+box.Min.X)*channels:]
		for x := box.Min.X; x < box.Max.X; x++ {
			if a := gen.stencil.opacity[i]; a > 0 && gen.allowed(x, y) {
				r, g, b := float32(v[0]), float32(v[1]), float32(v[2])
				cr, cg, cb := at(x, y, r, g, b)
				v[0], v[1], v[2] = level8(r+a*(cr-r)), level8(g+a*(cg-g)), level8(b+a*(cb-b))
			}
			v = v[channels:]
			i++
		}
	}
}

// level8 rounds v to the nearest grey level in 0…255.
func level8(v float32) byte { return byte(min(max(v, 0), 255) + 0.5) }

// between returns a uniformly distributed number.
func (gen *Generator) between(low, high float64) float64 { return low + (high-low)*gen.r.Float64() }

// logUniform returns a number whose logarithm is uniformly distributed.
func (gen *Generator) logUniform(low, high float64) float64 {
	return math.Exp(gen.between(math.Log(low), math.Log(high)))
}

func abs(v int32) int32 { return max(v, -v) }

// grown returns a slice of length n, which reuses old's memory if it is large enough.
// The elements are undefined.
func grown[T any](old []T, n int) []T {
	if cap(old) < n {
		return make([]T, n)
	}
	return old[:n]
}
