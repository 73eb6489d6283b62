package trainer

import (
	"image"
	"math"
	"math/rand/v2"

	"github.com/deepmed/anomaly/models"
)

// Synthetic defects. What the marker learns from has to differ in shape, size,
// strength and kind as far as real defects do, known to nobody beforehand: so
// all ranges are wide, and those over a decade or more are drawn evenly in the
// logarithm. Lengths are parts of the image's side or pixels of an image of
// referenceSide, brightness is in grey levels of 255.
const (
	referenceSide = 128
	// secondDefect is the share of images that get two.
	secondDefect = 0.3
	// visibleTries is how often an image is spoilt anew when nothing can be seen
	// of it, as of a black spot on black.
	visibleTries = 6

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

	// visibleWindow is the side, in pixels of referenceSide, of the square over
	// which a change is averaged: one pixel alone is not seen. A mean change of
	// invisibleLevels is lost in the rounding of JPEG, one of clearLevels is not.
	visibleWindow                = 3
	invisibleLevels, clearLevels = 2, 6
)

// change is what is done to the pixels of a shape.
type change int

const (
	offset change = iota // brighter, darker or of another colour
	fill                 // one colour with a little noise
	paste                // texture of another image
	smear                // blurred
	shift                // moved a little
	grain                // noise added
)

// changes are drawn as often as they stand here: an offset is what most defects
// are, and those to which a measure of texture is the most blind.
var changes = [...]change{offset, offset, offset, offset, fill, fill, paste, paste, grain, grain, smear, shift}

// defect is one that was painted.
type defect struct {
	shape  shape
	change change
	box    image.Rectangle // outside of it nothing changed
}

// covering gives the colour that a pixel of the image, at x and y and now of
// those levels, would have if the defect covered it all.
type covering func(x, y int, r, g, b float32) (float32, float32, float32)

// spoiler paints synthetic defects on normal images. It is for one goroutine.
type spoiler struct {
	r     *rand.Rand
	side  int
	scale float64 // pixels to one of referenceSide

	defects []defect // of the latest image
	stencil stencil  // where the defect being painted lies
	field   []float32
	nodes   []float32
	before  []byte
	blur    blur
	seen    []int32
	columns []int32
}

// newSpoiler makes one for images of side×side pixels. Those it spoils depend on
// nothing but the random numbers and the images.
func newSpoiler(r *rand.Rand, side int) *spoiler {
	return &spoiler{r: r, side: side, scale: float64(side) / referenceSide}
}

// spoil copies image into out with one or two defects, and sets mask (side×side)
// to how visible the change is at each pixel, 0…1. other is another normal image
// to take texture from. Images are side×side×3 bytes; out is neither of the
// others. Where defects cannot be seen on an image, however often they are drawn,
// the mask stays 0.
func (s *spoiler) spoil(out []byte, mask []float32, image, other []byte) {
	for range visibleTries {
		copy(out, image)
		s.defects = s.defects[:0]
		s.paint(out, other)
		if s.r.Float64() < secondDefect {
			s.paint(out, other)
		}
		if s.see(mask, image, out) {
			return
		}
	}
}

// paint adds one defect to the image.
func (s *spoiler) paint(out, other []byte) {
	shape := s.draw()
	change := changes[s.r.IntN(len(changes))]
	box := s.stencil.box
	s.defects = append(s.defects, defect{shape, change, box})
	if box.Empty() {
		return
	}
	var covered covering
	switch change {
	case offset:
		covered = s.offset()
	case fill:
		covered = s.fill()
	case paste:
		covered = s.paste(other)
	case smear:
		covered = s.smear(out)
	case shift:
		covered = s.shift(out)
	case grain:
		covered = s.grain()
	}
	i := 0
	for y := box.Min.Y; y < box.Max.Y; y++ {
		p := out[(y*s.side+box.Min.X)*models.InputChannels:]
		for x := box.Min.X; x < box.Max.X; x++ {
			if a := s.stencil.cover[i]; a > 0 {
				r, g, b := float32(p[0]), float32(p[1]), float32(p[2])
				cr, cg, cb := covered(x, y, r, g, b)
				p[0], p[1], p[2] = level8(r+a*(cr-r)), level8(g+a*(cg-g)), level8(b+a*(cb-b))
			}
			p = p[models.InputChannels:]
			i++
		}
	}
}

// level8 is the nearest grey level of a byte.
func level8(v float32) byte { return byte(min(max(v, 0), 255) + 0.5) }

func (s *spoiler) offset() covering {
	var d [3]float32
	if s.r.Float64() < greyOffsets {
		v := float32(s.logUniform(faintestOffset, strongestOffset))
		if s.r.IntN(2) == 0 {
			v = -v
		}
		d = [3]float32{v, v, v}
	} else {
		for i := range d {
			d[i] = float32(s.r.NormFloat64() * colourOffset)
		}
	}
	return func(_, _ int, r, g, b float32) (float32, float32, float32) { return r + d[0], g + d[1], b + d[2] }
}

func (s *spoiler) fill() covering {
	v := float32(s.between(0, 255))
	c := [3]float32{v, v, v}
	if s.r.Float64() >= greyFills {
		c[1], c[2] = float32(s.between(0, 255)), float32(s.between(0, 255))
	}
	noise := s.between(0, strongestFillNoise)
	return func(_, _ int, _, _, _ float32) (float32, float32, float32) {
		n := float32(s.r.NormFloat64() * noise)
		return c[0] + n, c[1] + n, c[2] + n
	}
}

func (s *spoiler) paste(other []byte) covering {
	n := s.side
	dx, dy, turn := s.r.IntN(n), s.r.IntN(n), s.r.IntN(4)
	opacity, gain := float32(s.between(thinnestPaste, 1)), float32(1)
	if s.r.IntN(2) == 0 {
		gain = float32(s.between(1-pasteGain, 1+pasteGain))
	}
	return func(x, y int, r, g, b float32) (float32, float32, float32) {
		x, y = (x+dx)%n, (y+dy)%n
		switch turn { // by quarters
		case 1:
			x, y = y, n-1-x
		case 2:
			x, y = n-1-x, n-1-y
		case 3:
			x, y = n-1-y, x
		}
		p := other[(y*n+x)*models.InputChannels:]
		return r + opacity*(float32(p[0])*gain-r), g + opacity*(float32(p[1])*gain-g), b + opacity*(float32(p[2])*gain-b)
	}
}

func (s *spoiler) smear(out []byte) covering {
	deviation := max(sharpestBlur, s.between(sharpestBlur, softestBlur)*s.scale)
	at := s.blur.of(out, s.side, s.stencil.box, deviation)
	return func(x, y int, _, _, _ float32) (float32, float32, float32) {
		p := at(x, y)
		return p[0], p[1], p[2]
	}
}

func (s *spoiler) shift(out []byte) covering {
	s.before = append(s.before[:0], out...)
	by := func() int { return int(math.Round(s.between(-longestShift, longestShift) * s.scale)) }
	dx, dy, last := by(), by(), s.side-1
	return func(x, y int, _, _, _ float32) (float32, float32, float32) {
		x, y = min(max(x+dx, 0), last), min(max(y+dy, 0), last)
		p := s.before[(y*s.side+x)*models.InputChannels:]
		return float32(p[0]), float32(p[1]), float32(p[2])
	}
}

// grain adds noise to all channels alike. Its finest grains are of one pixel,
// whatever the image's side: so fine is that of a camera and of a print.
func (s *spoiler) grain() covering {
	strength := float32(s.logUniform(faintestGrain, strongestGrain))
	size := [...]float64{1, 2 * s.scale, 4 * s.scale}[s.r.IntN(3)]
	if size <= 1 {
		return func(_, _ int, r, g, b float32) (float32, float32, float32) {
			n := float32(s.r.NormFloat64()) * strength
			return r + n, g + n, b + n
		}
	}
	box := s.stencil.box
	field := s.noise(box.Dx(), box.Dy(), size)
	return func(x, y int, r, g, b float32) (float32, float32, float32) {
		n := field[(y-box.Min.Y)*box.Dx()+x-box.Min.X] * strength
		return r + n, g + n, b + n
	}
}

// noise gives w×h numbers of mean 0 and variance 1 that change over so many
// pixels: linear between normal ones on a grid. They hold until the next call.
func (s *spoiler) noise(w, h int, size float64) []float32 {
	across, down := int(float64(w)/size)+3, int(float64(h)/size)+3
	s.nodes = grown(s.nodes, across*down)
	// Between nodes the variance is lower: 2/3 of theirs in each direction, on
	// average.
	const deviation = 1.5
	for i := range s.nodes {
		s.nodes[i] = float32(s.r.NormFloat64() * deviation)
	}
	s.field = grown(s.field, w*h)
	// The grid begins anywhere before the first pixel.
	step, left, top := float32(1/size), s.r.Float32(), s.r.Float32()
	for y := range h {
		v := top + float32(y)*step
		row := int(v)
		v -= float32(row)
		upper, lower := s.nodes[row*across:][:across], s.nodes[(row+1)*across:][:across]
		line := s.field[y*w:][:w]
		for x := range line {
			u := left + float32(x)*step
			column := int(u)
			u -= float32(column)
			a := upper[column] + u*(upper[column+1]-upper[column])
			b := lower[column] + u*(lower[column+1]-lower[column])
			line[x] = a + v*(b-a)
		}
	}
	return s.field
}

// see sets the mask to how visible the change from one image to the other is,
// and says whether it is anywhere.
func (s *spoiler) see(mask []float32, before, after []byte) bool {
	clear(mask)
	var changed image.Rectangle
	for _, d := range s.defects {
		changed = changed.Union(d.box)
	}
	if changed.Empty() {
		return false
	}
	reach := int(visibleWindow * s.scale / 2)
	box := changed.Inset(-reach).Intersect(image.Rect(0, 0, s.side, s.side))
	w, h := box.Dx(), box.Dy()
	s.seen = grown(s.seen, w*h)
	i := 0
	for y := box.Min.Y; y < box.Max.Y; y++ {
		at := (y*s.side + box.Min.X) * models.InputChannels
		a, b := before[at:][:w*models.InputChannels], after[at:][:w*models.InputChannels]
		for k := 0; k < len(a); k += models.InputChannels {
			s.seen[i] = abs(int32(a[k])-int32(b[k])) + abs(int32(a[k+1])-int32(b[k+1])) + abs(int32(a[k+2])-int32(b[k+2]))
			i++
		}
	}
	// Sums over the window slide down the columns and along the rows. What lies
	// outside of the box did not change, what lies outside of the image is not
	// counted.
	s.columns = grown(s.columns, w)
	clear(s.columns)
	slide := func(row int, sign int32) {
		if row < 0 || row >= h {
			return
		}
		for x, v := range s.seen[row*w:][:w] {
			s.columns[x] += sign * v
		}
	}
	for row := range reach {
		slide(row, 1)
	}
	visible := false
	for row := range h {
		slide(row+reach, 1)
		slide(row-reach-1, -1)
		y := row + box.Min.Y
		rows := min(y+reach, s.side-1) - max(y-reach, 0) + 1
		sum := int32(0)
		for _, v := range s.columns[:min(reach, w)] {
			sum += v
		}
		line := mask[y*s.side+box.Min.X:][:w]
		for column := range line {
			if in := column + reach; in < w {
				sum += s.columns[in]
			}
			if out := column - reach - 1; out >= 0 {
				sum -= s.columns[out]
			}
			if sum == 0 {
				continue
			}
			x := column + box.Min.X
			counted := rows * (min(x+reach, s.side-1) - max(x-reach, 0) + 1) * models.InputChannels
			if mean := float32(sum) / float32(counted); mean > invisibleLevels {
				line[column] = min(1, mean/clearLevels)
				visible = true
			}
		}
	}
	return visible
}

// between draws evenly from a range.
func (s *spoiler) between(low, high float64) float64 { return low + (high-low)*s.r.Float64() }

// logUniform draws from a range, evenly in the logarithm.
func (s *spoiler) logUniform(low, high float64) float64 {
	return math.Exp(s.between(math.Log(low), math.Log(high)))
}

func abs(v int32) int32 { return max(v, -v) }

// grown gives a slice of n numbers, the one there was where it is large enough.
// What is in it is of no account.
func grown[T any](old []T, n int) []T {
	if cap(old) < n {
		return make([]T, n)
	}
	return old[:n]
}
