package patches

import "slices"

// insideOf returns the patches of an image that count; nil for all.
func insideOf(inside [][]bool, image int) []bool {
	if inside == nil {
		return nil
	}
	return inside[image]
}

// counts are how many images have each patch; nil means that all images have all patches.
type counts struct {
	images    int
	byPatches []int
}

// share returns the share of all patches of all images that count.
func (c *counts) share() float64 {
	if c == nil {
		return 1
	}
	sum := 0
	for _, n := range c.byPatches {
		sum += n
	}
	return max(float64(sum), 1) / float64(c.images*len(c.byPatches))
}

// imputed returns feature maps in which a patch that does not count has the mean features of
// the images where it counts, so that it adds nothing to a scatter matrix, and zeros if there
// are none. It returns the images themselves if all patches count.
func imputed(m Map, images [][]float32, inside [][]bool) ([][]float32, *counts) {
	if inside == nil {
		return images, nil
	}
	patches := m.Patches()
	c := &counts{images: len(images), byPatches: make([]int, patches)}
	sums := make([]float64, m.Len())
	for k, image := range images {
		for p, in := range inside[k] {
			if !in {
				continue
			}
			c.byPatches[p]++
			for i := p; i < len(image); i += patches {
				sums[i] += float64(image[i])
			}
		}
	}
	out := make([][]float32, len(images))
	for k, image := range images {
		if !slices.Contains(inside[k], false) {
			out[k] = image
			continue
		}
		out[k] = slices.Clone(image)
		for p, in := range inside[k] {
			if in {
				continue
			}
			for i := p; i < len(image); i += patches {
				out[k][i] = float32(sums[i] / max(float64(c.byPatches[p]), 1))
			}
		}
	}
	return out, c
}

// minCounted is the smallest number of images that must have a patch. A patch that fewer
// images have is not judged by place: its covariance is unknown.
const minCounted = 2

// forget makes the distance of patches that too few images have 0.
func (g *Gaussian) forget(c *counts) {
	if c == nil {
		return
	}
	n := g.Rank * g.Channels
	for p, images := range c.byPatches {
		if images < minCounted {
			g.Scale[p] = 0
			clear(g.Directions[p*n : (p+1)*n])
		}
	}
}

// averageInside returns the mean of each of c channels over the patches inside, 0 if there are
// none.
func averageInside(x []float32, c int, inside []bool) []float64 {
	patches := len(x) / c
	f := make([]float64, c)
	n := 0.0
	for p, in := range inside {
		if !in {
			continue
		}
		n++
		for i := range f {
			f[i] += float64(x[i*patches+p])
		}
	}
	for i := range f {
		f[i] /= max(n, 1)
	}
	return f
}
