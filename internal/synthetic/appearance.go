package synthetic

import "math"

// Ranges of the appearances. Real defects are unknown in advance, so shapes, sizes,
// strengths and kinds vary widely. Values that span a factor of ten or more are
// uniform in the logarithm. Brightness is in grey levels (of 255).
const (
	// faintestOffset, strongestOffset bound the change of brightness: from just above
	// the noise of a camera to nearly half of the range.
	faintestOffset, strongestOffset = 8, 110
	// greyOffsets is the share of offsets that are equal in all channels. In the
	// others, each channel has a standard deviation of colourOffset.
	greyOffsets, colourOffset = 0.7, 45
	// greyFills is the share of fills that are grey, strongestFillNoise the largest
	// standard deviation of the noise on a fill.
	greyFills, strongestFillNoise = 0.6, 12
	// thinnestPaste is the lowest opacity of pasted texture. Half of the pasted
	// textures are scaled in brightness by up to 1±pasteGain.
	thinnestPaste, pasteGain = 0.5, 0.3
	// sharpestBlur, softestBlur are standard deviations in pixels at referenceSide.
	// sharpestBlur is also the minimum in pixels at any side, since less has no
	// visible effect.
	sharpestBlur, softestBlur = 0.8, 3
	// longestShift is in pixels at referenceSide.
	longestShift = 10
	// faintestGrain, strongestGrain are standard deviations of added noise.
	faintestGrain, strongestGrain = 8, 50
)

// appearance is the kind of change to the pixels of a shape.
type appearance int

const (
	offset       appearance = iota // brighter, darker or of another colour
	fill                           // uniform colour with weak noise
	cutPaste                       // texture of another image (Li et al., 2021; Schlüter et al., 2022)
	smoothing                      // Gaussian blur
	displacement                   // pixels shifted
	grain                          // added noise
)

// appearances are drawn uniformly from this list. Offsets are the most frequent,
// because most defects are offsets, and texture statistics detect these worst.
var appearances = [...]appearance{
	offset, offset, offset, offset, fill, fill, cutPaste, cutPaste, grain, grain, smoothing, displacement,
}

// texture returns the colour of the anomaly at pixel (x, y), for an opacity of 1. r, g
// and b are the levels of the image there.
type texture func(x, y int, r, g, b float32) (float32, float32, float32)

// texture draws a texture with an appearance, for the current stencil.
func (gen *Generator) texture(a appearance, out, other []byte) texture {
	switch a {
	case offset:
		return gen.offset()
	case fill:
		return gen.fill()
	case cutPaste:
		return gen.cutPaste(other)
	case smoothing:
		return gen.smoothing(out)
	case displacement:
		return gen.displacement(out)
	}
	return gen.grain()
}

// offset adds the same value to all pixels.
func (gen *Generator) offset() texture {
	var d [3]float32
	if gen.r.Float64() < greyOffsets {
		v := float32(gen.logUniform(faintestOffset, strongestOffset))
		if gen.r.IntN(2) == 0 {
			v = -v
		}
		d = [3]float32{v, v, v}
	} else {
		for i := range d {
			d[i] = float32(gen.r.NormFloat64() * colourOffset)
		}
	}
	return func(_, _ int, r, g, b float32) (float32, float32, float32) { return r + d[0], g + d[1], b + d[2] }
}

// fill replaces the pixels by one colour with noise.
func (gen *Generator) fill() texture {
	v := float32(gen.between(0, 255))
	c := [3]float32{v, v, v}
	if gen.r.Float64() >= greyFills {
		c[1], c[2] = float32(gen.between(0, 255)), float32(gen.between(0, 255))
	}
	noise := gen.between(0, strongestFillNoise)
	return func(_, _ int, _, _, _ float32) (float32, float32, float32) {
		n := float32(gen.r.NormFloat64() * noise)
		return c[0] + n, c[1] + n, c[2] + n
	}
}

// cutPaste blends in texture of another image.
func (gen *Generator) cutPaste(other []byte) texture {
	// Keep the order of the draws: the images of a seed depend on it.
	source := gen.shifted(other)
	opacity, gain := float32(gen.between(thinnestPaste, 1)), float32(1)
	if gen.r.IntN(2) == 0 {
		gain = float32(gen.between(1-pasteGain, 1+pasteGain))
	}
	return func(x, y int, r, g, b float32) (float32, float32, float32) {
		v := source(x, y)
		return r + opacity*(float32(v[0])*gain-r), g + opacity*(float32(v[1])*gain-g), b + opacity*(float32(v[2])*gain-b)
	}
}

// shifted returns the pixels of an image that is shifted cyclically by a random
// distance and rotated by a random multiple of 90°.
func (gen *Generator) shifted(other []byte) func(x, y int) []byte {
	w, h := gen.w, gen.h
	dx, dy, turn := gen.r.IntN(w), gen.r.IntN(h), gen.r.IntN(4)
	return func(x, y int) []byte {
		x, y = (x+dx)%w, (y+dy)%h
		switch turn { // an image that is not square is repeated
		case 1:
			x, y = y%w, h-1-x%h
		case 2:
			x, y = w-1-x, h-1-y
		case 3:
			x, y = w-1-y%w, x%h
		}
		return other[(y*w+x)*channels:][:channels]
	}
}

// smoothing blurs the image.
func (gen *Generator) smoothing(out []byte) texture {
	deviation := max(sharpestBlur, gen.between(sharpestBlur, softestBlur)*gen.scale)
	at := gen.blur.of(out, gen.w, gen.h, gen.stencil.box, deviation)
	return func(x, y int, _, _, _ float32) (float32, float32, float32) {
		v := at(x, y)
		return v[0], v[1], v[2]
	}
}

// displacement replaces each pixel by one at a fixed distance.
func (gen *Generator) displacement(out []byte) texture {
	gen.before = append(gen.before[:0], out...)
	by := func() int { return int(math.Round(gen.between(-longestShift, longestShift) * gen.scale)) }
	dx, dy := by(), by()
	return func(x, y int, _, _, _ float32) (float32, float32, float32) {
		x, y = min(max(x+dx, 0), gen.w-1), min(max(y+dy, 0), gen.h-1)
		v := gen.before[(y*gen.w+x)*channels:]
		return float32(v[0]), float32(v[1]), float32(v[2])
	}
}

// grain adds the same noise to all channels. The finest noise varies from pixel to
// pixel at any image side, as that of a camera or a print does.
func (gen *Generator) grain() texture {
	strength := float32(gen.logUniform(faintestGrain, strongestGrain))
	size := [...]float64{1, 2 * gen.scale, 4 * gen.scale}[gen.r.IntN(3)]
	if size <= 1 {
		return func(_, _ int, r, g, b float32) (float32, float32, float32) {
			n := float32(gen.r.NormFloat64()) * strength
			return r + n, g + n, b + n
		}
	}
	box := gen.stencil.box
	field := gen.noise(box.Dx(), box.Dy(), size)
	return func(x, y int, r, g, b float32) (float32, float32, float32) {
		n := field[(y-box.Min.Y)*box.Dx()+x-box.Min.X] * strength
		return r + n, g + n, b + n
	}
}
