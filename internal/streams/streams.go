// Package streams derives the streams of random numbers of a training from its seed.
// Each use has a stream of its own, so that one more number drawn in one place
// changes nothing elsewhere. It may import nothing of ours.
package streams

import "math/rand/v2"

// Use names what a stream is drawn for. The numbers are part of what a seed means:
// other numbers give other models for the same seed.
type Use uint64

// The uses of a seed.
const (
	Weights         Use = 1
	Shuffle         Use = 2
	Calibration     Use = 3
	ReferenceImages Use = 4
	heads           Use = 5 // HeadSteps and HeadWeights of two heads
	Detectability   Use = 9
)

// headCount is the number of heads that the numbers above leave room for.
const headCount = 2

// HeadSteps returns the use of the batches of defect head k, 0 or 1.
func HeadSteps(k int) Use { return heads + Use(k) }

// HeadWeights returns the use of the initial weights of defect head k, 0 or 1.
func HeadWeights(k int) Use { return heads + headCount + Use(k) }

// New returns the stream of a seed for that use.
func New(seed int64, use Use) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(seed), uint64(use)))
}

// Sample returns a stream for synthetic anomaly i of defect head k. The anomaly then
// does not depend on which goroutine paints it.
func Sample(seed int64, k, i int) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(seed), uint64(k)<<32|uint64(i)|1<<62))
}
