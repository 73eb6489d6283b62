package synthetic

import (
	"image"
	"math"
	"math/rand/v2"
)

const (
	// referenceSide is that of the images that lengths in pixels are told for;
	// those of an image of another side are in proportion.
	referenceSide = 128
	// secondAnomaly is the share of images that get two.
	secondAnomaly = 0.3
	// visibleTries is how often an image is painted anew when nothing can be seen
	// of it, as of a black spot on black.
	visibleTries = 6
)

// anomaly is one that was painted.
type anomaly struct {
	shape      shape
	appearance appearance
	box        image.Rectangle // outside of it nothing changed
}

// Painter paints synthetic anomalies on normal images. It is for one goroutine.
type Painter struct {
	r     *rand.Rand
	side  int
	scale float64 // pixels to one of referenceSide

	anomalies []anomaly // of the latest image
	stencil   stencil   // where the anomaly being painted lies
	field     []float32
	lattice   []float32
	before    []byte
	blur      blur
	changed   []int32
	columns   []int32
}

// NewPainter returns a Painter for images of side×side pixels. What it paints
// depends on nothing but the random numbers and the images.
func NewPainter(r *rand.Rand, side int) *Painter {
	return &Painter{r: r, side: side, scale: float64(side) / referenceSide}
}

// Paint copies image into out with one or two anomalies, and sets mask (side×side)
// to how visible the change is at each pixel, 0…1. other is another normal image,
// to take texture from. Images are side×side×3 bytes; out is neither of the
// others. Where no anomaly can be seen on an image, however often it is drawn, the
// mask stays 0.
func (p *Painter) Paint(out []byte, mask []float32, image, other []byte) {
	for range visibleTries {
		copy(out, image)
		p.anomalies = p.anomalies[:0]
		p.add(out, other)
		if p.r.Float64() < secondAnomaly {
			p.add(out, other)
		}
		if p.setMask(mask, image, out) {
			return
		}
	}
}

// add paints one anomaly.
func (p *Painter) add(out, other []byte) {
	shape := p.draw()
	appearance := appearances[p.r.IntN(len(appearances))]
	p.anomalies = append(p.anomalies, anomaly{shape, appearance, p.stencil.box})
	if !p.stencil.box.Empty() {
		p.apply(out, p.cover(appearance, out, other))
	}
}

// apply blends what covers the pixels of the stencil into the image.
func (p *Painter) apply(out []byte, covered covering) {
	box, i := p.stencil.box, 0
	for y := box.Min.Y; y < box.Max.Y; y++ {
		v := out[(y*p.side+box.Min.X)*channels:]
		for x := box.Min.X; x < box.Max.X; x++ {
			if a := p.stencil.opacity[i]; a > 0 {
				r, g, b := float32(v[0]), float32(v[1]), float32(v[2])
				cr, cg, cb := covered(x, y, r, g, b)
				v[0], v[1], v[2] = level8(r+a*(cr-r)), level8(g+a*(cg-g)), level8(b+a*(cb-b))
			}
			v = v[channels:]
			i++
		}
	}
}

// level8 returns the nearest grey level of a byte.
func level8(v float32) byte { return byte(min(max(v, 0), 255) + 0.5) }

// between draws uniformly from a range.
func (p *Painter) between(low, high float64) float64 { return low + (high-low)*p.r.Float64() }

// logUniform draws from a range, uniformly in the logarithm.
func (p *Painter) logUniform(low, high float64) float64 {
	return math.Exp(p.between(math.Log(low), math.Log(high)))
}

func abs(v int32) int32 { return max(v, -v) }

// grown returns a slice of n numbers, the one there was where it is large enough.
// Its values are undefined.
func grown[T any](old []T, n int) []T {
	if cap(old) < n {
		return make([]T, n)
	}
	return old[:n]
}
