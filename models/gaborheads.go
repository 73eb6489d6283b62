package models

import (
	"fmt"
	"slices"
	"strings"
)

// A marker is a small convolutional network that was trained to mark synthetic
// defects on normal images, place by place; see docs/detection.md. There are two,
// each trained on one half of the images, so that each image can be judged by the
// one that has not seen it. A model of few images has none.
const (
	// GaborHeads is their number.
	GaborHeads = 2
	// GaborHeadWidth is the number of channels of a marker's hidden layers.
	GaborHeadWidth = 32
	// markerScales is how many scales, from the finest on, a marker sees.
	markerScales = 3
	markerPrefix = "normality.marker."
)

// markerKernels are the sides of a marker's kernels, layer by layer.
var markerKernels = []int{1, 3, 3, 3, 1}

// GaborHeadScales are the scales that a marker of images of that side sees, the
// finest first. Its own places are the finest's.
func GaborHeadScales(side int) []GaborScale {
	s := GaborScales(side)
	return s[:min(len(s), markerScales)]
}

// GaborHeadChannels is what a marker sees of a place: of each of its scales the
// features and their deviations from those of normal images.
func GaborHeadChannels(side int) int {
	n := 0
	for _, s := range GaborHeadScales(side) {
		n += 2 * s.Features()
	}
	return n
}

// GaborHeadParameters are the tensors of marker k, layer by layer a weight
// (O×I×K×K) and a bias (O).
func GaborHeadParameters(side, k int) []Parameter {
	var ps []Parameter
	in := GaborHeadChannels(side)
	for i, kernel := range markerKernels {
		out := GaborHeadWidth
		if i == len(markerKernels)-1 {
			out = 1
		}
		name := fmt.Sprintf("%s%d.%d.", markerPrefix, k, i)
		ps = append(ps, Parameter{name + "weight", []int{out, in, kernel, kernel}}, Parameter{name + "bias", []int{out}})
		in = out
	}
	return ps
}

// GaborHeadsParameters are the tensors of all markers, and then what puts their
// figure in standard deviations: offset, the mean of the highest place of images
// that were not learnt from, and slope, one over its standard deviation.
func GaborHeadsParameters(side int) []Parameter {
	var ps []Parameter
	for k := range GaborHeads {
		ps = append(ps, GaborHeadParameters(side, k)...)
	}
	return append(ps, Parameter{markerPrefix + "offset", []int{1}}, Parameter{markerPrefix + "slope", []int{1}})
}

// HasGaborHeads reports whether there are tensors of markers among those of
// normality.
func HasGaborHeads(normality StateDict) bool {
	return slices.ContainsFunc(normality, func(t Tensor) bool { return strings.HasPrefix(t.Name, markerPrefix) })
}

// expected are the parameters that tensors of normality must be, with heads or
// markers where there are any.
func (sd StateDict) expected(side int) []Parameter {
	if HasPatches(sd) {
		return PatchParameters(side, HasHeads(sd), BankSize(sd))
	}
	ps := GaborParameters(side)
	if HasGaborHeads(sd) {
		ps = append(ps, GaborHeadsParameters(side)...)
	}
	return ps
}
