package patches

import (
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/workers"
)

// outside returns masks in which patch 0 is in no image, patch 1 in one, and patch 2 in every
// other image; the others are in all.
func outside(m Map, n int) [][]bool {
	inside := make([][]bool, n)
	for k := range inside {
		inside[k] = slices.Repeat([]bool{true}, m.Patches())
		inside[k][0], inside[k][1], inside[k][2] = false, k == 0, k%2 == 0
	}
	return inside
}

func TestFits_IgnorePatchesOutside(t *testing.T) {
	m, n := Map{6, 3, 4}, 14
	inside := outside(m, n)
	first, second := synthetic(m, n, 1), synthetic(m, n, 1)
	for k, image := range second {
		for i := range image {
			if !inside[k][i%m.Patches()] {
				image[i] = float32(1000 + i + k)
			}
		}
	}
	pool := workers.Pool{Threads: 2}
	var peaks, pooled, near [2][]float64
	for i, images := range [][][]float32{first, second} {
		gaussians, err := FitGaussians(t.Context(), m, images, inside, 2, 4, pool)
		if err != nil {
			t.Fatal(err)
		}
		p, err := FitPooled(m, images, inside, 2, pool)
		if err != nil {
			t.Fatal(err)
		}
		q, err := FitNeighbours(m, images, inside, 2, 5, pool)
		if err != nil {
			t.Fatal(err)
		}
		for fit := range gaussians {
			for k, image := range images {
				peaks[i] = append(peaks[i], gaussians[fit].Peak(image, inside[k]))
				pooled[i] = append(pooled[i], p[fit].Distance(image, inside[k]))
				near[i] = append(near[i], q[fit].Distance(image, inside[k]))
			}
			// Patches that fewer than two images have are not judged by place.
			gaussians[fit].each(images[1], func(patch int, d float64) {
				if patch < 2 && d != 0 {
					t.Errorf("fit %d: patch %d has the distance %v", fit, patch, d)
				}
			})
		}
	}
	for name, of := range map[string][2][]float64{"peaks": peaks, "pooled": pooled, "neighbours": near} {
		if !slices.Equal(of[0], of[1]) || slices.Max(of[0]) == 0 {
			t.Errorf("%s: features outside change %v to %v", name, of[0], of[1])
		}
	}
}

func TestFits_AreTheSameWithAllPatchesInside(t *testing.T) {
	m, n := Map{6, 3, 2}, 9
	images, all := synthetic(m, n, 2), make([][]bool, n)
	for k := range all {
		all[k] = slices.Repeat([]bool{true}, m.Patches())
	}
	pool := workers.Pool{Threads: 1}
	var fits [2][]*Gaussian
	for i, inside := range [][][]bool{nil, all} {
		var err error
		if fits[i], err = FitGaussians(t.Context(), m, images, inside, 3, 4, pool); err != nil {
			t.Fatal(err)
		}
	}
	for k := range fits[0] {
		a, b := fits[0][k], fits[1][k]
		if !slices.Equal(a.Mean, b.Mean) || !slices.Equal(a.Whitening, b.Whitening) || !slices.Equal(a.Scale, b.Scale) || !slices.Equal(a.Directions, b.Directions) {
			t.Errorf("fit %d differs", k)
		}
	}
}
