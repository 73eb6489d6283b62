package trainer

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
)

// sample is an image that a marker learns from: its features by scale, and where
// a defect was painted on it (nil for nowhere).
type sample struct {
	image  int
	seen   [][]float32
	target []float32
}

// errStopped ends the painting when the caller asked for an end.
var errStopped = errors.New("trainer: the caller asked for an end")

// paint makes so many samples with defects, fewer where memory or time end, and
// none when the caller asks for an end.
func (t *markerTraining) paint(ctx context.Context, n int, began, deadline time.Time) error {
	p := t.scales[0].Places
	bytes := 4 * p * p
	for _, s := range t.scales {
		bytes += 4 * s.Features() * s.Places * s.Places
	}
	n = min(n, maxSampleBytes/bytes)
	until := time.Time{}
	if !deadline.IsZero() {
		until = began.Add(time.Duration(spoiltShare * float64(deadline.Sub(began))))
	}
	learnt, side := t.learnt(), t.data.Side
	samples := make([]sample, n)
	seen, err := t.energies.observe(ctx, t.options, n, 0, len(t.scales), until, func() func(int) ([]byte, error) {
		spoilt, mask := make([]byte, side*side*models.InputChannels), make([]float32, side*side)
		var buffer, second []byte
		return func(i int) ([]byte, error) {
			if t.options.stopped() {
				return nil, errStopped
			}
			// A stream of its own for each sample: who paints it does not matter.
			random := rand.New(rand.NewPCG(uint64(t.options.Seed), uint64(t.number)<<32|uint64(i)|1<<62))
			k := learnt[i%len(learnt)]
			image, err := t.data.Image(t.order[k], &buffer)
			if err != nil {
				return nil, err
			}
			other, err := t.data.Image(t.order[learnt[random.IntN(len(learnt))]], &second)
			if err != nil {
				return nil, err
			}
			newSpoiler(random, side).spoil(spoilt, mask, image, other)
			samples[i] = sample{image: k, target: highestOf(mask, side, p)}
			return spoilt, nil
		}
	})
	if errors.Is(err, errStopped) {
		return nil
	}
	if err != nil {
		return err
	}
	for i := range samples {
		samples[i].seen = seen[i]
	}
	t.samples = slices.DeleteFunc(samples, func(s sample) bool { return s.seen == nil })
	return nil
}

// highestOf gives the largest number of each of p×p places.
func highestOf(mask []float32, side, p int) []float32 {
	out, cell := make([]float32, p*p), side/p
	for i, v := range mask {
		at := i/side/cell*p + i%side/cell
		out[at] = max(out[at], v)
	}
	return out
}

// good is image k as it is.
func (t *markerTraining) good(k int) sample {
	s := sample{image: k}
	for i := range t.scales {
		s.seen = append(s.seen, t.x[i][k])
	}
	return s
}

// assemble writes what a marker sees of an image, as network's graph has it: of
// each scale the features, then their deviations, enlarged to the finest scale's
// places.
func assemble(out []float32, seen [][]float32, known []place, scales []models.NormalityScale) {
	p := scales[0].Places
	at := 0
	for i, s := range scales {
		size := s.Places * s.Places
		for _, deviations := range []bool{false, true} {
			plane := make([]float32, size)
			for f := range s.Features() {
				from := seen[i][f*size : (f+1)*size]
				if deviations {
					mean, precision := known[i].mean[f*size:(f+1)*size], known[i].precision[f*size:(f+1)*size]
					for j, v := range from {
						plane[j] = network.DeviationOf(v, mean[j], precision[j])
					}
					from = plane
				}
				network.EnlargePlane(out[at:at+p*p], from, s.Places, p/s.Places)
				at += p * p
			}
		}
	}
}
