// Package streams returns the random number streams of a training. Each use of the seed
// has its own stream, so that drawing more numbers for one use does not change another.
// It must not import packages of this module.
package streams

import "math/rand/v2"

// Use identifies a use of the seed. Changing the numbers changes the models of all seeds.
type Use uint64

// The uses of a seed.
const (
	Weights         Use = 1
	Shuffle         Use = 2
	Calibration     Use = 3
	ReferenceImages Use = 4
	heads           Use = 5 // HeadSteps and HeadWeights of two heads
	Detectability   Use = 9
	Tiles           Use = 10
)

// headCount is the number of heads that the numbers above allow.
const headCount = 2

// HeadSteps returns the use for the batches of defect head k, 0 or 1.
func HeadSteps(k int) Use { return heads + Use(k) }

// HeadWeights returns the use for the initial weights of defect head k, 0 or 1.
func HeadWeights(k int) Use { return heads + headCount + Use(k) }

// New returns the stream of a seed for a use.
func New(seed int64, use Use) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(seed), uint64(use)))
}

// Sample returns the stream for synthetic anomaly i of defect head k. Each anomaly has
// its own stream, so that it does not depend on the goroutine that paints it.
func Sample(seed int64, k, i int) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(seed), uint64(k)<<32|uint64(i)|1<<62))
}

// Verdict returns the number in (0, 1] that breaks the ties of verdict i. Each verdict has
// its own stream, so that no state of a generator has to be stored.
func Verdict(seed uint64, i int64) float64 {
	var source rand.PCG
	source.Seed(seed, uint64(i)|1<<61)
	const digits = 53
	return float64(source.Uint64()>>(64-digits)+1) / (1 << digits)
}
