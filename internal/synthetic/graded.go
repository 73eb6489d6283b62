package synthetic

import "math"

// Shapes of graded anomalies, relative to their largest extent.
const (
	// gradedFlattest is the smallest ratio of an ellipse's axes. It is close to 1, so
	// that the area depends mainly on the extent.
	gradedFlattest = 0.6
	// gradedSlenderness is the ratio of a scratch's length to its width, which is at
	// least one pixel.
	gradedSlenderness = 8
	// leastContrast is the share of the contrast that must remain after clipping to
	// 0…255; otherwise the sign of the contrast may be reversed.
	leastContrast = 0.5
)

// Form is the shape of a graded anomaly. At the same extent, a Scratch has the smallest
// area and a Square the largest.
type Form int

// The forms.
const (
	// Blob is an ellipse that is nearly a disc.
	Blob Form = iota
	// Scratch is a straight line whose width is an eighth of its length (CutPaste's
	// scar).
	Scratch
	// Square is aligned with the pixels.
	Square
	// Forms is the number of forms.
	Forms
)

// GenerateOffset copies image into out and adds one anomaly: contrast, in grey levels, is
// added to all channels and clipped to 0…255. A negative contrast is darker. The
// anomaly has the given form, a largest extent of diameter pixels (at least 1) and a
// random position, inside of the image if it fits. The sign of the contrast is
// reversed when clipping leaves less than half of it on average, as for a brighter
// anomaly on white, and less than the reversed contrast. Images are w×h×3 bytes;
// out and image must not overlap.
func (gen *Generator) GenerateOffset(out, image []byte, form Form, diameter, contrast float64) {
	copy(out, image)
	gen.drawGraded(form, diameter)
	if fits := gen.fitting(out, contrast); fits < leastContrast*math.Abs(contrast) && fits < gen.fitting(out, -contrast) {
		contrast = -contrast
	}
	v := float32(contrast)
	gen.apply(out, func(_, _ int, r, g, b float32) (float32, float32, float32) { return r + v, g + v, b + v })
}

// GenerateCutPaste copies image into out and adds one anomaly of this form and diameter:
// opaque texture from a random position of other, another normal image, rotated by a
// random multiple of 90° (CutPaste; Li et al., 2021).
func (gen *Generator) GenerateCutPaste(out, image, other []byte, form Form, diameter float64) {
	copy(out, image)
	gen.drawGraded(form, diameter)
	source := gen.shifted(other)
	gen.apply(out, func(x, y int, _, _, _ float32) (float32, float32, float32) {
		v := source(x, y)
		return float32(v[0]), float32(v[1]), float32(v[2])
	})
}

// GenerateBlur copies image into out and blurs one region of this form and diameter. The
// standard deviation is softestBlur: 3 pixels for an image side of 128.
func (gen *Generator) GenerateBlur(out, image []byte, form Form, diameter float64) {
	copy(out, image)
	gen.drawGraded(form, diameter)
	at := gen.blur.of(out, gen.w, gen.h, gen.stencil.box, max(sharpestBlur, softestBlur*gen.scale))
	gen.apply(out, func(x, y int, _, _, _ float32) (float32, float32, float32) {
		v := at(x, y)
		return v[0], v[1], v[2]
	})
}

// mostlyInside is the share of a graded anomaly that must be where anomalies are allowed, if
// an attempt succeeds.
const mostlyInside = 0.8

// drawGraded draws a shape of this form and extent into the stencil.
func (gen *Generator) drawGraded(form Form, diameter float64) {
	diameter = max(diameter, 1)
	for range gen.tries(visibleTries) {
		switch form {
		case Scratch:
			gen.gradedScratch(diameter)
		case Square:
			gen.gradedSquare(diameter)
		default:
			gen.gradedBlob(diameter)
		}
		if gen.inside == nil || gen.shareAllowed() >= mostlyInside {
			return
		}
	}
}

// shareAllowed returns the share of the stencil that is where anomalies are allowed.
func (gen *Generator) shareAllowed() float32 {
	box := gen.stencil.box
	sum, all := float32(0), float32(0)
	for i, a := range gen.stencil.opacity {
		if all += a; gen.allowed(box.Min.X+i%box.Dx(), box.Min.Y+i/box.Dx()) {
			sum += a
		}
	}
	return sum / max(all, 1e-6)
}

// within returns a random start for an interval of this length in a side of the image,
// which is inside of the image if it fits.
func (gen *Generator) within(side int, length float64) float64 {
	return gen.between(0, max(0, float64(side)-length))
}

// gradedBlob draws an ellipse.
func (gen *Generator) gradedBlob(diameter float64) {
	radius := diameter / 2
	cx, cy := gen.within(gen.w, diameter)+radius, gen.within(gen.h, diameter)+radius
	sin, cos := math.Sincos(gen.between(0, math.Pi))
	flat := gen.between(gradedFlattest, 1)
	reach := radius + rimEnd*sharpRim
	t := gen.clearStencil(cx-reach, cy-reach, cx+reach, cy+reach)
	w := t.box.Dx()
	for i := range t.opacity {
		x, y := float64(t.box.Min.X+i%w)+0.5-cx, float64(t.box.Min.Y+i/w)+0.5-cy
		u, v := x*cos+y*sin, (y*cos-x*sin)/flat
		t.opacity[i] = inside((radius - math.Sqrt(u*u+v*v)) / sharpRim)
	}
}

// gradedScratch draws a straight line.
func (gen *Generator) gradedScratch(length float64) {
	width := max(1, length/gradedSlenderness)
	between := max(length-width, 0.5) // the ends are round; stroke needs a positive length
	sin, cos := math.Sincos(gen.between(0, math.Pi))
	dx, dy := between*cos, between*sin
	reach := width/2 + 0.5 // half a pixel more for partly covered pixels
	w, h := math.Abs(dx)+width, math.Abs(dy)+width
	x0, y0 := gen.within(gen.w, w)+width/2, gen.within(gen.h, h)+width/2
	if dx < 0 {
		x0 -= dx
	}
	x1, y1 := x0+dx, y0+dy
	t := gen.clearStencil(min(x0, x1)-reach, min(y0, y1)-reach, max(x0, x1)+reach, max(y0, y1)+reach)
	t.stroke(x0, y0, x1, y1, reach, 1)
}

// gradedSquare draws a square aligned with the pixels.
func (gen *Generator) gradedSquare(extent float64) {
	n := math.Round(extent)
	x, y := math.Floor(gen.within(gen.w, n)), math.Floor(gen.within(gen.h, n))
	t := gen.clearStencil(x, y, x+n, y+n)
	// The stencil is one pixel larger than the square.
	w := t.box.Dx()
	for i := range t.opacity {
		if float64(t.box.Min.X+i%w) < x+n && float64(t.box.Min.Y+i/w) < y+n {
			t.opacity[i] = 1
		}
	}
}

// fitting returns the mean change, in grey levels, that a contrast causes in the
// stencil after clipping to 0…255.
func (gen *Generator) fitting(image []byte, contrast float64) float64 {
	box, i := gen.stencil.box, 0
	sum, weight := 0.0, 0.0
	for y := box.Min.Y; y < box.Max.Y; y++ {
		for x := box.Min.X; x < box.Max.X; x++ {
			a := float64(gen.stencil.opacity[i])
			for _, v := range image[(y*gen.w+x)*channels:][:channels] {
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
