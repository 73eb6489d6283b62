package models

import (
	"fmt"
	"slices"
	"strings"
)

// This file describes the defect heads of models of earlier versions, whose input
// are Gabor features; see gabor.go. The heads of current models are in patches.go.

// A defect head (discriminative head, as in DRAEM) is a small convolutional network
// trained to segment synthetic anomalies on normal images. Each of the two heads is
// trained on one half of the images, so that every image can be scored by a head
// that was not trained on it. A model trained on few images has none.
const (
	// GaborHeads is the number of heads.
	GaborHeads = 2
	// gaborHeadWidth is the number of channels of the hidden layers.
	gaborHeadWidth = 32
	// maxGaborHeadScales is the number of scales, from the finest on, in the input.
	maxGaborHeadScales = 3
	gaborHeadPrefix    = "normality.marker."
)

// gaborHeadKernels are the kernel sides, layer by layer.
var gaborHeadKernels = []int{1, 3, 3, 3, 1}

// GaborHeadScales returns the scales in the input of a head, for images of side×side
// pixels, the finest first. The output has one logit for each patch of the finest
// scale.
func GaborHeadScales(side int) []GaborScale {
	s := GaborScales(side)
	return s[:min(len(s), maxGaborHeadScales)]
}

// gaborHeadChannels returns the number of input channels: for each scale, the
// features and their deviations from the reference statistics.
func gaborHeadChannels(side int) int {
	n := 0
	for _, s := range GaborHeadScales(side) {
		n += 2 * s.Features()
	}
	return n
}

// GaborHeadParameters returns the tensors of head k: for each layer a weight
// (O×I×K×K) and a bias (O).
func GaborHeadParameters(side, k int) []Parameter {
	var ps []Parameter
	in := gaborHeadChannels(side)
	for i, kernel := range gaborHeadKernels {
		out := gaborHeadWidth
		if i == len(gaborHeadKernels)-1 {
			out = 1
		}
		name := fmt.Sprintf("%s%d.%d.", gaborHeadPrefix, k, i)
		ps = append(ps, Parameter{name + "weight", []int{out, in, kernel, kernel}}, Parameter{name + "bias", []int{out}})
		in = out
	}
	return ps
}

// GaborHeadsParameters returns the tensors of all heads, then those that
// standardize their score: offset, the mean of the largest logit over held-out
// normal images, and slope, the reciprocal of its standard deviation.
func GaborHeadsParameters(side int) []Parameter {
	var ps []Parameter
	for k := range GaborHeads {
		ps = append(ps, GaborHeadParameters(side, k)...)
	}
	return append(ps, Parameter{gaborHeadPrefix + "offset", []int{1}}, Parameter{gaborHeadPrefix + "slope", []int{1}})
}

// HasGaborHeads reports whether the reference statistics include defect heads of an
// earlier version.
func HasGaborHeads(reference StateDict) bool {
	return slices.ContainsFunc(reference, func(t Tensor) bool { return strings.HasPrefix(t.Name, gaborHeadPrefix) })
}

// expected returns the parameters that reference statistics must have, for images of that
// size; sd decides whether heads are among them. Gabor features exist for square images
// only.
func (sd StateDict) expected(size Size) []Parameter {
	if HasPatches(sd) {
		return slices.Concat(PlaceParameters(size, PlaceCount(sd)), PatchParameters(size, HasHeads(sd), BankSize(sd)))
	}
	side := size.Side()
	ps := GaborParameters(side)
	if HasGaborHeads(sd) {
		ps = append(ps, GaborHeadsParameters(side)...)
	}
	return ps
}
