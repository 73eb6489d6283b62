package synthetic

// noise returns w×h values of value noise with mean 0 and variance 1: normally
// distributed values on a lattice with a spacing of size pixels, interpolated linearly.
// The result is valid until the next call.
func (gen *Generator) noise(w, h int, size float64) []float32 {
	across, down := int(float64(w)/size)+3, int(float64(h)/size)+3
	gen.lattice = grown(gen.lattice, across*down)
	// Interpolation reduces the variance to 2/3 in each direction on average, and
	// 1.5² · (2/3)² = 1.
	const deviation = 1.5
	for i := range gen.lattice {
		gen.lattice[i] = float32(gen.r.NormFloat64() * deviation)
	}
	gen.field = grown(gen.field, w*h)
	// The lattice has a random offset.
	step, left, top := float32(1/size), gen.r.Float32(), gen.r.Float32()
	for y := range h {
		v := top + float32(y)*step
		row := int(v)
		v -= float32(row)
		upper, lower := gen.lattice[row*across:][:across], gen.lattice[(row+1)*across:][:across]
		line := gen.field[y*w:][:w]
		for x := range line {
			u := left + float32(x)*step
			column := int(u)
			u -= float32(column)
			a := upper[column] + u*(upper[column+1]-upper[column])
			b := lower[column] + u*(lower[column+1]-lower[column])
			line[x] = a + v*(b-a)
		}
	}
	return gen.field
}
