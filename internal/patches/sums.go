package patches

import "gonum.org/v1/gonum/floats"

// sums are the sums over images of the features at a place and of their products,
// by group of images: what a fit is made of is the total less a group.
type sums struct {
	m             Map
	images        [][]float32
	p             partition
	first, places int       // those that are loaded
	squares       float64   // the sum of squares of all that is loaded
	features      []float64 // by place, channel and image, the images by group, less the mean
	means         []float64 // of all images, by place and channel
	starts        []int     // where the groups' images begin
	total         []float64 // C×C, the lower triangle
	products      [][]float64
	linear        [][]float64 // by group and channel
}

func newSums(m Map, images [][]float32, p partition) *sums {
	c := m.Channels
	s := &sums{m: m, images: images, p: p}
	s.features = make([]float64, blockPlaces*c*p.n)
	s.means = make([]float64, blockPlaces*c)
	s.total = make([]float64, c*c)
	at := 0
	for g := range p.groups() {
		s.starts = append(s.starts, at)
		at += p.group(g)
		s.products = append(s.products, make([]float64, c*c))
		s.linear = append(s.linear, make([]float64, c))
	}
	s.starts = append(s.starts, at)
	return s
}

// load reads blockPlaces places from the first on, or those that there are.
//
// Deviations are first taken from an image, and then from the mean of those: so
// images that are alike deviate by exactly zero, and not by rounding.
func (s *sums) load(first int) {
	c, n, places := s.m.Channels, s.p.n, s.m.Patches()
	s.first, s.places, s.squares = first, min(blockPlaces, places-first), 0
	for k, image := range s.images {
		to := s.starts[k%s.p.groups()] + k/s.p.groups()
		for i := range c {
			at := i*places + first
			for b, v := range image[at : at+s.places] {
				v := float64(v)
				s.squares += v * v
				s.features[(b*c+i)*n+to] = v
			}
		}
	}
	for row := range s.places * c {
		x := s.features[row*n : (row+1)*n]
		origin := x[0]
		floats.AddConst(-origin, x)
		mean := floats.Sum(x) / float64(n)
		floats.AddConst(-mean, x)
		s.means[row] = origin + mean
	}
}

// sum computes the sums at one of the loaded places.
func (s *sums) sum(place int) {
	c, n := s.m.Channels, s.p.n
	features := s.features[place*c*n : (place+1)*c*n]
	clear(s.total)
	for g, products := range s.products {
		from, to := s.starts[g], s.starts[g+1]
		for i := range c {
			x := features[i*n+from : i*n+to]
			s.linear[g][i] = floats.Sum(x)
			for j := range i + 1 {
				products[i*c+j] = floats.Dot(x, features[j*n+from:j*n+to])
			}
		}
		floats.Add(s.total, products)
	}
}

// scatter stores the sum of products of deviations from the fit's mean, at the
// place that was last summed. Only the lower triangle is stored.
func (s *sums) scatter(out []float64, fit int) {
	copy(out, s.total)
	if fit == s.p.folds {
		return // the deviations are from the mean of all
	}
	c := s.m.Channels
	floats.Sub(out, s.products[fit])
	rest := float64(s.p.size(fit))
	for i, v := range s.linear[fit] { // the others' sum is its negative
		floats.AddScaled(out[i*c:i*c+i+1], -v/rest, s.linear[fit][:i+1])
	}
}

// mean calls set with the fit's mean of each channel at the place that was last
// summed.
func (s *sums) mean(place, fit int, set func(channel int, v float64)) {
	c := s.m.Channels
	for i, v := range s.means[place*c : (place+1)*c] {
		if fit < s.p.folds {
			v -= s.linear[fit][i] / float64(s.p.size(fit))
		}
		set(i, v)
	}
}
