package synthetic

// noise returns w×h numbers of mean 0 and variance 1 that change over size pixels:
// value noise, linear between normally distributed values on a lattice. It is valid
// until the next call.
func (p *Painter) noise(w, h int, size float64) []float32 {
	across, down := int(float64(w)/size)+3, int(float64(h)/size)+3
	p.lattice = grown(p.lattice, across*down)
	// Between nodes the variance is lower: 2/3 of theirs in each direction, on
	// average.
	const deviation = 1.5
	for i := range p.lattice {
		p.lattice[i] = float32(p.r.NormFloat64() * deviation)
	}
	p.field = grown(p.field, w*h)
	// The lattice begins anywhere before the first pixel.
	step, left, top := float32(1/size), p.r.Float32(), p.r.Float32()
	for y := range h {
		v := top + float32(y)*step
		row := int(v)
		v -= float32(row)
		upper, lower := p.lattice[row*across:][:across], p.lattice[(row+1)*across:][:across]
		line := p.field[y*w:][:w]
		for x := range line {
			u := left + float32(x)*step
			column := int(u)
			u -= float32(column)
			a := upper[column] + u*(upper[column+1]-upper[column])
			b := lower[column] + u*(lower[column+1]-lower[column])
			line[x] = a + v*(b-a)
		}
	}
	return p.field
}
