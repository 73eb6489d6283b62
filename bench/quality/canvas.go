package main

import (
	"image"
	"math"
	"math/rand/v2"
)

// canvas is a square image of linear RGB, about 0 to 1.
type canvas struct {
	side int
	rgb  [3][]float64
}

func newCanvas(side int) *canvas {
	c := &canvas{side: side}
	for k := range c.rgb {
		c.rgb[k] = make([]float64, side*side)
	}
	return c
}

// each calls f with the index and the centre of each pixel.
func (c *canvas) each(f func(i int, x, y float64)) {
	for i := range c.side * c.side {
		f(i, float64(i%c.side)+0.5, float64(i/c.side)+0.5)
	}
}

// expose simulates a photograph: blur and vignetting of the lens, an illumination
// gradient, and sensor noise.
func (c *canvas) expose(r *rand.Rand, blur, gradient, grain float64) *image.NRGBA {
	out := image.NewNRGBA(image.Rect(0, 0, c.side, c.side))
	half := float64(c.side) / 2
	sin, cos := math.Sincos(2 * math.Pi * r.Float64())
	slope, exposure := gradient*r.Float64(), 1+0.08*(2*r.Float64()-1)
	for k := range c.rgb {
		plane := smooth(c.rgb[k], c.side, blur)
		c.each(func(i int, x, y float64) {
			x, y = (x-half)/half, (y-half)/half
			light := exposure * (1 + slope*(cos*x+sin*y)) * (1 - 0.06*(x*x+y*y))
			v := max(plane[i]*light, 0)
			v += grain * math.Sqrt(v+0.02) * r.NormFloat64()
			out.Pix[4*i+k] = uint8(math.Round(255 * min(max(v, 0), 1)))
		})
	}
	for i := 3; i < len(out.Pix); i += 4 {
		out.Pix[i] = 255
	}
	return out
}

// smooth applies a Gaussian blur with a standard deviation of sigma pixels; edges are
// replicated.
func smooth(plane []float64, side int, sigma float64) []float64 {
	n := int(math.Ceil(3 * sigma))
	kernel, sum := make([]float64, 2*n+1), 0.0
	for i := range kernel {
		kernel[i] = math.Exp(-float64((i-n)*(i-n)) / (2 * sigma * sigma))
		sum += kernel[i]
	}
	pass := func(in []float64, across bool) []float64 {
		out := make([]float64, len(in))
		for i := range in {
			x, y := i%side, i/side
			for k, w := range kernel {
				if across {
					out[i] += w / sum * in[y*side+min(max(x+k-n, 0), side-1)]
				} else {
					out[i] += w / sum * in[min(max(y+k-n, 0), side-1)*side+x]
				}
			}
		}
		return out
	}
	return pass(pass(plane, true), false)
}

// clouds returns smooth noise with standard deviation 1 and a feature size in pixels.
func clouds(r *rand.Rand, side int, size float64) []float64 {
	// Coarse noise is generated on a coarse grid, which is faster.
	cell := max(int(size/2), 1)
	coarse := side/cell + 4
	grid := make([]float64, coarse*coarse)
	for i := range grid {
		grid[i] = r.NormFloat64()
	}
	grid = smooth(grid, coarse, size/float64(cell)/2)
	out := make([]float64, side*side)
	sum, squares := 0.0, 0.0
	for i := range out {
		x, y := float64(i%side)/float64(cell)+1, float64(i/side)/float64(cell)+1
		out[i] = between(grid, coarse, x, y)
		sum += out[i]
		squares += out[i] * out[i]
	}
	mean := sum / float64(len(out))
	deviation := math.Sqrt(squares/float64(len(out)) - mean*mean)
	for i := range out {
		out[i] = (out[i] - mean) / deviation
	}
	return out
}

// between interpolates a plane with smoothstep, so that the grid is not visible.
func between(plane []float64, side int, x, y float64) float64 {
	x0, y0 := int(x), int(y)
	ease := func(t float64) float64 { return t * t * (3 - 2*t) }
	fx, fy := ease(x-float64(x0)), ease(y-float64(y0))
	at := func(x, y int) float64 { return plane[min(y, side-1)*side+min(x, side-1)] }
	return (at(x0, y0)*(1-fx)+at(x0+1, y0)*fx)*(1-fy) + (at(x0, y0+1)*(1-fx)+at(x0+1, y0+1)*fx)*fy
}

// ramp is smoothstep from 0 at a to 1 at b.
func ramp(a, b, v float64) float64 {
	t := min(max((v-a)/(b-a), 0), 1)
	return t * t * (3 - 2*t)
}

// spread returns a uniform random number from a to b.
func spread(r *rand.Rand, a, b float64) float64 { return a + (b-a)*r.Float64() }

// masked returns the mask of the pixels above a limit.
func masked(plane []float64, side int, limit float64) *image.Gray {
	m := image.NewGray(image.Rect(0, 0, side, side))
	for i, v := range plane {
		if v > limit {
			m.Pix[i] = 255
		}
	}
	return m
}
