package patches

import "gonum.org/v1/gonum/floats"

// sums are sums over images of a patch's features and of their products, by group of
// images. The sums of a fit are the total minus the sums of a group.
type sums struct {
	m              Map
	images         [][]float32
	p              partition
	first, patches int         // loaded: the first patch and the number of patches
	squares        float64     // sum of squares of all loaded features
	features       []float64   // minus the mean, by patch, channel and image; images by group
	means          []float64   // over all images, by patch and channel
	starts         []int       // index of each group's first image
	total          []float64   // of products, C×C, lower triangle
	products       [][]float64 // by group; C×C, lower triangle
	linear         [][]float64 // by group and channel
}

func newSums(m Map, images [][]float32, p partition) *sums {
	c := m.Channels
	s := &sums{m: m, images: images, p: p}
	s.features = make([]float64, blockSize*c*p.n)
	s.means = make([]float64, blockSize*c)
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

// load reads up to blockSize patches, beginning with first.
//
// It subtracts an image before it computes and subtracts the mean, so that identical
// images have deviations of exactly zero.
func (s *sums) load(first int) {
	c, n, patches := s.m.Channels, s.p.n, s.m.Patches()
	s.first, s.patches, s.squares = first, min(blockSize, patches-first), 0
	for k, image := range s.images {
		to := s.starts[k%s.p.groups()] + k/s.p.groups()
		for i := range c {
			at := i*patches + first
			for b, v := range image[at : at+s.patches] {
				v := float64(v)
				s.squares += v * v
				s.features[(b*c+i)*n+to] = v
			}
		}
	}
	for row := range s.patches * c {
		x := s.features[row*n : (row+1)*n]
		origin := x[0]
		floats.AddConst(-origin, x)
		mean := floats.Sum(x) / float64(n)
		floats.AddConst(-mean, x)
		s.means[row] = origin + mean
	}
}

// sum computes the sums of a loaded patch.
func (s *sums) sum(patch int) {
	c, n := s.m.Channels, s.p.n
	features := s.features[patch*c*n : (patch+1)*c*n]
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

// scatter stores the scatter matrix of a fit for the patch last summed: the sum of
// products of deviations from the fit's mean, lower triangle.
func (s *sums) scatter(out []float64, fit int) {
	copy(out, s.total)
	if fit == s.p.folds {
		return // features are deviations from the mean of all images
	}
	c := s.m.Channels
	floats.Sub(out, s.products[fit])
	rest := float64(s.p.size(fit))
	for i, v := range s.linear[fit] { // the sum of all other images is its negative
		floats.AddScaled(out[i*c:i*c+i+1], -v/rest, s.linear[fit][:i+1])
	}
}

// mean calls set with the fit's mean of each channel for the patch last summed.
func (s *sums) mean(patch, fit int, set func(channel int, v float64)) {
	c := s.m.Channels
	for i, v := range s.means[patch*c : (patch+1)*c] {
		if fit < s.p.folds {
			v -= s.linear[fit][i] / float64(s.p.size(fit))
		}
		set(i, v)
	}
}
