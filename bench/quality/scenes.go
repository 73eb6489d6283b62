package main

import (
	"image"
	"math"
	"math/rand/v2"
)

// scene is a generated data set. Its images have the difficulties of real ones:
// noise, blur, uneven light, and variation among normal images.
type scene struct {
	name, defect string
	// draw returns a normal image, or, if defect is not nil, one with a defect and its
	// mask. defect is the random source of the defect, r that of everything else.
	draw func(side int, r, defect *rand.Rand) (*image.NRGBA, *image.Gray)
}

// scenes is the generated data sets: an unaligned texture, an aligned object, and a
// plain surface.
var scenes = []scene{
	{"weave", "scratch", weave},
	{"flange", "missing_bolt", flange},
	{"panel", "stain", panel},
}

// tinted returns a colour with random variation, as between production batches.
func tinted(r *rand.Rand, red, green, blue float64) [3]float64 {
	light := spread(r, 0.94, 1.06)
	return [3]float64{red * light * spread(r, 0.985, 1.015), green * light, blue * light * spread(r, 0.985, 1.015)}
}

// weave is cloth of irregular threads. The defect is a scratch, which tears the
// threads along a line.
func weave(side int, r, defect *rand.Rand) (*image.NRGBA, *image.Gray) {
	const period = 9.0
	c := newCanvas(side)
	bendX, bendY, fibre := clouds(r, side, 45), clouds(r, side, 45), clouds(r, side, 1.5)
	angle := spread(r, -0.03, 0.03)
	sin, cos := math.Sincos(angle)
	fromX, fromY := period*2*r.Float64(), period*2*r.Float64()
	tint := tinted(r, 0.52, 0.45, 0.355)
	threads := make([]float64, 2*side)
	for i := range threads {
		threads[i] = 0.05 * r.NormFloat64()
	}
	scratch := make([]float64, side*side)
	depth := 0.0
	if defect != nil {
		scratch, depth = scratched(side, defect)
	}
	c.each(func(i int, x, y float64) {
		u, v := x*cos-y*sin+1.2*bendX[i]+fromX+4*period, x*sin+y*cos+1.2*bendY[i]+fromY+4*period
		u, v = u/period, v/period
		iu, iv := math.Floor(u), math.Floor(v)
		across, along, thread := u-iu, v-iv, int(iu)
		if int(iu+iv)%2 != 0 {
			across, along, thread = along, across, side+int(iv)
		}
		// A thread is round, and highest in its middle.
		round := math.Sqrt(max(1-math.Pow(2*across-1, 2), 0))
		value := 0.55 + 0.45*round*(0.7+0.3*math.Sin(math.Pi*along)) + threads[thread%len(threads)] + 0.05*fibre[i]
		// In a scratch, the threads are torn into unordered light fibres.
		torn := 0.8 + 0.12*fibre[i] + depth
		value = value*(1-0.85*scratch[i]) + torn*0.85*scratch[i]
		for k := range c.rgb {
			c.rgb[k][i] = tint[k] * value
		}
	})
	img := c.expose(r, 0.7, 0.25, 0.025)
	if defect == nil {
		return img, nil
	}
	return img, masked(scratch, side, 0.4)
}

// scratched returns one or two slightly curved lines with thin ends; depth is their
// difference in brightness from the cloth.
func scratched(side int, r *rand.Rand) (plane []float64, depth float64) {
	plane = make([]float64, side*side)
	depth = spread(r, 0.03, 0.3)
	if r.IntN(2) == 0 {
		depth = -depth
	}
	for range 1 + r.IntN(2) {
		length, width := spread(r, 30, 110), spread(r, 1.2, 2.6)
		heading, bend := 2*math.Pi*r.Float64(), spread(r, -0.012, 0.012)
		x, y := spread(r, 0.25, 0.75)*float64(side), spread(r, 0.25, 0.75)*float64(side)
		for s := 0.0; s < length; s += 0.5 {
			w := width * math.Pow(math.Sin(math.Pi*(s+1)/(length+2)), 0.3)
			n := int(w) + 2
			for py := int(y) - n; py <= int(y)+n; py++ {
				for px := int(x) - n; px <= int(x)+n; px++ {
					if px < 0 || py < 0 || px >= side || py >= side {
						continue
					}
					d := math.Hypot(float64(px)+0.5-x, float64(py)+0.5-y)
					i := py*side + px
					plane[i] = max(plane[i], 1-ramp(w/2, w/2+1.2, d))
				}
			}
			sin, cos := math.Sincos(heading)
			x, y, heading = x+0.5*cos, y+0.5*sin, heading+0.5*bend
		}
	}
	return plane, depth
}

// flange is a turned part with six bolts, slightly misaligned, under a moving lamp. The
// defect is a missing bolt, which leaves a hole smaller than its head.
func flange(side int, r, defect *rand.Rand) (*image.NRGBA, *image.Gray) {
	const bolts = 6
	c := newCanvas(side)
	s := float64(side) / 200
	cx, cy := float64(side)/2+s*spread(r, -6, 6), float64(side)/2+s*spread(r, -6, 6)
	turn := spread(r, -0.1, 0.1)
	var heads, worn [bolts]float64 // bolts have any orientation, and some are worn
	for i := range heads {
		heads[i], worn[i] = 2*math.Pi*r.Float64(), 0.06*r.NormFloat64()
	}
	missing := -1
	if defect != nil {
		missing = defect.IntN(bolts)
	}
	height, albedo := make([]float64, side*side), make([]float64, side*side)
	hole := make([]float64, side*side)
	dirt, brushed, ground := clouds(r, side, 14), clouds(r, side, 1.2), clouds(r, side, 5)
	c.each(func(i int, x, y float64) {
		x, y = (x-cx)/s, (y-cy)/s
		d := math.Hypot(x, y)
		disc := 1 - ramp(82, 85, d)
		h := 6*disc + 5*(1-ramp(34, 39, d)) - 8*(1-ramp(19, 21, d)) + 0.4*disc*math.Sin(d*1.9)
		a := 0.22 + 0.03*ground[i]
		a += disc * (0.36 + 0.025*dirt[i] + 0.02*brushed[i] - a + 0.22)
		a -= 0.4 * (1 - ramp(18, 20, d))
		for b := range bolts {
			sin, cos := math.Sincos(turn + 2*math.Pi*float64(b)/bolts)
			bx, by := x-60*cos, y-60*sin
			dist := math.Hypot(bx, by)
			if b == missing {
				hole[i] = 1 - ramp(7, 8.5, dist)
				inside := 1 - ramp(4, 5.5, dist)
				h -= 2 * inside
				a -= 0.2 * inside
				continue
			}
			// A hexagon is the intersection of three strips.
			hex := 0.0
			for k := range 3 {
				s, c := math.Sincos(heads[b] + math.Pi*float64(k)/3)
				hex = max(hex, math.Abs(bx*c+by*s))
			}
			head := 1 - ramp(6.8, 8.2, hex)
			h += 4 * head
			a += head * (0.5 + worn[b] + 0.02*dirt[i] - a)
		}
		height[i], albedo[i] = h, a
	})
	height = smooth(height, side, 0.8)
	azimuth, low := spread(r, -2.6, -1.9), spread(r, 0.5, 0.75)
	sin, cos := math.Sincos(azimuth)
	c.each(func(i int, x, y float64) {
		px, py := i%side, i/side
		at := func(x, y int) float64 { return height[min(max(y, 0), side-1)*side+min(max(x, 0), side-1)] }
		nx, ny := (at(px-1, py)-at(px+1, py))/2, (at(px, py-1)-at(px, py+1))/2
		length := math.Sqrt(nx*nx + ny*ny + 1)
		lambert := max((low*(cos*nx+sin*ny)+1)/length/math.Sqrt(1+low*low), 0)
		shine := 0.35 * math.Pow(lambert, 24)
		for k, tint := range [3]float64{1, 0.99, 0.96} {
			c.rgb[k][i] = tint * max(albedo[i], 0.02) * (0.25 + 0.95*lambert + shine)
		}
	})
	img := c.expose(r, 0.8, 0.2, 0.02)
	if defect == nil {
		return img, nil
	}
	return img, masked(hole, side, 0.5)
}

// panel is a painted sheet with a fine texture and a little dust. The defect is a stain
// with soft edges, a few per cent lighter or darker.
func panel(side int, r, defect *rand.Rand) (*image.NRGBA, *image.Gray) {
	c := newCanvas(side)
	large, skin := clouds(r, side, 90), clouds(r, side, 3)
	tint := tinted(r, 0.53, 0.57, 0.595)
	dust := make([]float64, side*side)
	for range r.IntN(6) {
		x, y, size := r.Float64()*float64(side), r.Float64()*float64(side), spread(r, 0.4, 0.9)
		c.each(func(i int, px, py float64) {
			dust[i] += 0.12 * math.Exp(-((px-x)*(px-x)+(py-y)*(py-y))/(2*size*size))
		})
	}
	stain, strength := make([]float64, side*side), [3]float64{}
	if defect != nil {
		stain, strength = stained(side, defect)
	}
	c.each(func(i int, x, y float64) {
		value := 1 + 0.035*large[i] + 0.008*skin[i] - dust[i]
		for k := range c.rgb {
			c.rgb[k][i] = tint[k] * value * (1 + strength[k]*stain[i])
		}
	})
	img := c.expose(r, 0.8, 0.2, 0.014)
	if defect == nil {
		return img, nil
	}
	return img, masked(stain, side, 0.4)
}

// stained returns a blot with a ragged edge, sometimes with the rim of a dried drop;
// strength is the relative change of each colour.
func stained(side int, r *rand.Rand) (plane []float64, strength [3]float64) {
	plane = make([]float64, side*side)
	rough := clouds(r, side, 12)
	radius, squeeze, turn := spread(r, 9, 28), spread(r, 0.6, 1), 2*math.Pi*r.Float64()
	x0, y0 := spread(r, 0.2, 0.8)*float64(side), spread(r, 0.2, 0.8)*float64(side)
	soft, rim := spread(r, 2, 6), 0.0
	if r.IntN(3) == 0 {
		rim = 0.6
	}
	sin, cos := math.Sincos(turn)
	for i := range plane {
		x, y := float64(i%side)+0.5-x0, float64(i/side)+0.5-y0
		d := math.Hypot(x*cos+y*sin, (y*cos-x*sin)/squeeze) + 0.16*radius*rough[i]
		blot := 1 - ramp(radius-soft, radius+soft, d)
		plane[i] = blot * (1 - rim*(1-ramp(radius*0.6, radius*0.95, d)))
	}
	sign := 1.0
	if r.IntN(4) > 0 {
		sign = -1
	}
	amount := sign * spread(r, 0.012, 0.05)
	for k, more := range [3]float64{spread(r, 0.85, 1.05), 1, spread(r, 0.95, 1.2)} {
		strength[k] = amount * more
	}
	return plane, strength
}
