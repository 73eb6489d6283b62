package synthetic

import "math"

// Ranges of appearances. Anomalies that a model learns from have to differ in shape,
// size, strength and kind as far as real ones do, known to nobody beforehand: so
// all ranges are wide, and those over a decade or more are drawn uniformly in the
// logarithm. Brightness is in grey levels of 255.
const (
	// faintestOffset, strongestOffset is how much brighter or darker a place
	// becomes: from what the noise of a camera just lets through to nearly half of
	// the range.
	faintestOffset, strongestOffset = 8, 110
	// greyOffsets is the share of the offsets that leave the colour alone, the
	// others are of deviation colourOffset in each channel.
	greyOffsets, colourOffset = 0.7, 45
	// greyFills is the share of the constant colours that are grey, and
	// strongestFillNoise the deviation of the noise on them.
	greyFills, strongestFillNoise = 0.6, 12
	// thinnestPaste is how opaque pasted texture is at least, pasteGain how much
	// brighter or darker half of it becomes.
	thinnestPaste, pasteGain = 0.5, 0.3
	// sharpestBlur, softestBlur are standard deviations in pixels of
	// referenceSide; sharpestBlur is also the least in pixels of any image, as less
	// leaves them as they are.
	sharpestBlur, softestBlur = 0.8, 3
	// longestShift is in pixels of referenceSide.
	longestShift = 10
	// faintestGrain, strongestGrain are deviations of added noise.
	faintestGrain, strongestGrain = 8, 50
)

// appearance is what is done to the pixels of a shape.
type appearance int

const (
	offset       appearance = iota // brighter, darker or of another colour
	fill                           // one colour with a little noise
	cutPaste                       // texture of another image (Li et al., 2021; Schlüter et al., 2022)
	smoothing                      // Gaussian blur
	displacement                   // moved a little
	grain                          // noise added
)

// appearances are drawn as often as they stand here: an offset is what most
// defects are, and those to which a measure of texture is the most blind.
var appearances = [...]appearance{
	offset, offset, offset, offset, fill, fill, cutPaste, cutPaste, grain, grain, smoothing, displacement,
}

// covering returns the colour that the pixel at x and y, now of those levels, would
// have if the anomaly covered it all.
type covering func(x, y int, r, g, b float32) (float32, float32, float32)

// cover draws what an appearance makes of the pixels in the stencil.
func (p *Painter) cover(a appearance, out, other []byte) covering {
	switch a {
	case offset:
		return p.offset()
	case fill:
		return p.fill()
	case cutPaste:
		return p.cutPaste(other)
	case smoothing:
		return p.smoothing(out)
	case displacement:
		return p.displacement(out)
	}
	return p.grain()
}

func (p *Painter) offset() covering {
	var d [3]float32
	if p.r.Float64() < greyOffsets {
		v := float32(p.logUniform(faintestOffset, strongestOffset))
		if p.r.IntN(2) == 0 {
			v = -v
		}
		d = [3]float32{v, v, v}
	} else {
		for i := range d {
			d[i] = float32(p.r.NormFloat64() * colourOffset)
		}
	}
	return func(_, _ int, r, g, b float32) (float32, float32, float32) { return r + d[0], g + d[1], b + d[2] }
}

func (p *Painter) fill() covering {
	v := float32(p.between(0, 255))
	c := [3]float32{v, v, v}
	if p.r.Float64() >= greyFills {
		c[1], c[2] = float32(p.between(0, 255)), float32(p.between(0, 255))
	}
	noise := p.between(0, strongestFillNoise)
	return func(_, _ int, _, _, _ float32) (float32, float32, float32) {
		n := float32(p.r.NormFloat64() * noise)
		return c[0] + n, c[1] + n, c[2] + n
	}
}

func (p *Painter) cutPaste(other []byte) covering {
	// The place comes before the rest: a seed's images depend on the order.
	place := p.elsewhere(other)
	opacity, gain := float32(p.between(thinnestPaste, 1)), float32(1)
	if p.r.IntN(2) == 0 {
		gain = float32(p.between(1-pasteGain, 1+pasteGain))
	}
	return func(x, y int, r, g, b float32) (float32, float32, float32) {
		v := place(x, y)
		return r + opacity*(float32(v[0])*gain-r), g + opacity*(float32(v[1])*gain-g), b + opacity*(float32(v[2])*gain-b)
	}
}

// elsewhere draws another place for each pixel: the image is shifted, going round,
// and turned by quarters.
func (p *Painter) elsewhere(other []byte) func(x, y int) []byte {
	n := p.side
	dx, dy, turn := p.r.IntN(n), p.r.IntN(n), p.r.IntN(4)
	return func(x, y int) []byte {
		x, y = (x+dx)%n, (y+dy)%n
		switch turn {
		case 1:
			x, y = y, n-1-x
		case 2:
			x, y = n-1-x, n-1-y
		case 3:
			x, y = n-1-y, x
		}
		return other[(y*n+x)*channels:][:channels]
	}
}

func (p *Painter) smoothing(out []byte) covering {
	deviation := max(sharpestBlur, p.between(sharpestBlur, softestBlur)*p.scale)
	at := p.blur.of(out, p.side, p.stencil.box, deviation)
	return func(x, y int, _, _, _ float32) (float32, float32, float32) {
		v := at(x, y)
		return v[0], v[1], v[2]
	}
}

func (p *Painter) displacement(out []byte) covering {
	p.before = append(p.before[:0], out...)
	by := func() int { return int(math.Round(p.between(-longestShift, longestShift) * p.scale)) }
	dx, dy, last := by(), by(), p.side-1
	return func(x, y int, _, _, _ float32) (float32, float32, float32) {
		x, y = min(max(x+dx, 0), last), min(max(y+dy, 0), last)
		v := p.before[(y*p.side+x)*channels:]
		return float32(v[0]), float32(v[1]), float32(v[2])
	}
}

// grain adds noise to all channels alike. Its finest grains are of one pixel,
// whatever the image's side: so fine is that of a camera and of a print.
func (p *Painter) grain() covering {
	strength := float32(p.logUniform(faintestGrain, strongestGrain))
	size := [...]float64{1, 2 * p.scale, 4 * p.scale}[p.r.IntN(3)]
	if size <= 1 {
		return func(_, _ int, r, g, b float32) (float32, float32, float32) {
			n := float32(p.r.NormFloat64()) * strength
			return r + n, g + n, b + n
		}
	}
	box := p.stencil.box
	field := p.noise(box.Dx(), box.Dy(), size)
	return func(x, y int, r, g, b float32) (float32, float32, float32) {
		n := field[(y-box.Min.Y)*box.Dx()+x-box.Min.X] * strength
		return r + n, g + n, b + n
	}
}
