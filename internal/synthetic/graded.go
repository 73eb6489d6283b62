package synthetic

import "math"

// Shapes of graded anomalies, by their largest extent.
const (
	// gradedFlattest is the shorter axis of an ellipse by the longer one: close to
	// a disc, so that the extent alone tells its area.
	gradedFlattest = 0.6
	// gradedSlenderness is the length of a scratch by its width, which is a pixel
	// at least.
	gradedSlenderness = 8
	// leastContrast is the share of a contrast that must fit into 0…255 where an
	// anomaly lies for the side, brighter or darker, to be kept.
	leastContrast = 0.5
)

// Form is the outline of a graded anomaly. Of the same extent, that of a Scratch is
// the smallest in area and that of a Square the largest.
type Form int

// The forms: a Blob is an ellipse that is nearly a disc, a Scratch a straight line of
// an eighth of its length in width, what CutPaste calls a scar, and a Square lies
// along the pixels.
const (
	Blob Form = iota
	Scratch
	Square
	Forms // how many there are
)

// PaintOffset copies image into out with one anomaly that is contrast grey levels
// brighter than what it covers, or darker where contrast is below 0: all channels
// alike, within 0…255. It is of that form, whose largest extent is diameter pixels of
// the image, 1 at least, and lies anywhere in the image, as a whole where it fits. Where less than half of the contrast would fit into 0…255 on
// average and more would on the other side, as of a brighter one on white, it is
// painted on that side. Images are side×side×3 bytes; out is not image.
func (p *Painter) PaintOffset(out, image []byte, form Form, diameter, contrast float64) {
	copy(out, image)
	p.drawGraded(form, diameter)
	if fits := p.fitting(out, contrast); fits < leastContrast*math.Abs(contrast) && fits < p.fitting(out, -contrast) {
		contrast = -contrast
	}
	v := float32(contrast)
	p.apply(out, func(_, _ int, r, g, b float32) (float32, float32, float32) { return r + v, g + v, b + v })
}

// PaintCutPaste copies image into out with one anomaly of such a form and size,
// which is cut from another place of other, another normal image (CutPaste, Li et
// al., 2021). It is opaque, and may be turned by quarters.
func (p *Painter) PaintCutPaste(out, image, other []byte, form Form, diameter float64) {
	copy(out, image)
	p.drawGraded(form, diameter)
	place := p.elsewhere(other)
	p.apply(out, func(x, y int, _, _, _ float32) (float32, float32, float32) {
		v := place(x, y)
		return float32(v[0]), float32(v[1]), float32(v[2])
	})
}

// PaintBlur copies image into out with one place of such a form and size blurred
// by a Gaussian, whose standard deviation is that of the softest blur of Paint: 3
// pixels of 128.
func (p *Painter) PaintBlur(out, image []byte, form Form, diameter float64) {
	copy(out, image)
	p.drawGraded(form, diameter)
	at := p.blur.of(out, p.side, p.stencil.box, max(sharpestBlur, softestBlur*p.scale))
	p.apply(out, func(x, y int, _, _, _ float32) (float32, float32, float32) {
		v := at(x, y)
		return v[0], v[1], v[2]
	})
}

// drawGraded makes a shape of that form and extent and puts it into the stencil.
func (p *Painter) drawGraded(form Form, diameter float64) {
	diameter = max(diameter, 1)
	switch form {
	case Scratch:
		p.gradedScratch(diameter)
	case Square:
		p.gradedSquare(diameter)
	default:
		p.gradedBlob(diameter)
	}
}

// within draws where a length of the image begins, so that it ends within it where
// that can be.
func (p *Painter) within(length float64) float64 {
	return p.between(0, max(0, float64(p.side)-length))
}

func (p *Painter) gradedBlob(diameter float64) {
	radius := diameter / 2
	cx, cy := p.within(diameter)+radius, p.within(diameter)+radius
	sin, cos := math.Sincos(p.between(0, math.Pi))
	flat := p.between(gradedFlattest, 1)
	reach := radius + rimEnd*sharpRim
	t := p.lay(cx-reach, cy-reach, cx+reach, cy+reach)
	w := t.box.Dx()
	for i := range t.opacity {
		x, y := float64(t.box.Min.X+i%w)+0.5-cx, float64(t.box.Min.Y+i/w)+0.5-cy
		u, v := x*cos+y*sin, (y*cos-x*sin)/flat
		t.opacity[i] = inside((radius - math.Sqrt(u*u+v*v)) / sharpRim)
	}
}

func (p *Painter) gradedScratch(length float64) {
	width := max(1, length/gradedSlenderness)
	between := max(length-width, 0.5) // the ends are round; a stroke has a length
	sin, cos := math.Sincos(p.between(0, math.Pi))
	dx, dy := between*cos, between*sin
	reach := width/2 + 0.5 // half of a pixel more, where it covers only a part
	w, h := math.Abs(dx)+width, math.Abs(dy)+width
	x0, y0 := p.within(w)+width/2, p.within(h)+width/2
	if dx < 0 {
		x0 -= dx
	}
	x1, y1 := x0+dx, y0+dy
	t := p.lay(min(x0, x1)-reach, min(y0, y1)-reach, max(x0, x1)+reach, max(y0, y1)+reach)
	t.stroke(x0, y0, x1, y1, reach, 1)
}

// gradedSquare draws one along the pixels whose side is the extent.
func (p *Painter) gradedSquare(extent float64) {
	n := math.Round(extent)
	x, y := math.Floor(p.within(n)), math.Floor(p.within(n))
	t := p.lay(x, y, x+n, y+n)
	// The stencil reaches over the end by a pixel.
	w := t.box.Dx()
	for i := range t.opacity {
		if float64(t.box.Min.X+i%w) < x+n && float64(t.box.Min.Y+i/w) < y+n {
			t.opacity[i] = 1
		}
	}
}

// fitting returns by how many grey levels the pixels in the stencil would change on
// average if they were that much brighter, as far as 0…255 lets them.
func (p *Painter) fitting(image []byte, contrast float64) float64 {
	box, i := p.stencil.box, 0
	sum, weight := 0.0, 0.0
	for y := box.Min.Y; y < box.Max.Y; y++ {
		for x := box.Min.X; x < box.Max.X; x++ {
			a := float64(p.stencil.opacity[i])
			for _, v := range image[(y*p.side+x)*channels:][:channels] {
				sum += a * math.Abs(min(max(float64(v)+contrast, 0), 255)-float64(v))
			}
			weight += channels * a
			i++
		}
	}
	if weight == 0 {
		return 0
	}
	return sum / weight
}
