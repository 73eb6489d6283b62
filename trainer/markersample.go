package trainer

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/synthetic"
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
			synthetic.NewPainter(random, side).Paint(spoilt, mask, image, other)
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

// assemble writes what a marker sees of the places of a scale: the features, then their
// deviations.
func assemble(out, seen []float32, known place) {
	n := copy(out, seen)
	deviations, mean, precision := out[n:2*n], known.mean[:n], known.precision[:n]
	for i, v := range seen {
		deviations[i] = network.DeviationOf(v, mean[i], precision[i])
	}
}

// seenTensors makes the inputs of a marker's graph that take so many images' places.
func seenTensors(scales []models.NormalityScale, images int) ([]*ort.Tensor, error) {
	var ts []*ort.Tensor
	for _, s := range scales {
		t, err := ort.NewTensor(images, 2*s.Features(), s.Places, s.Places)
		if err != nil {
			closeAll(ts)
			return nil, err
		}
		ts = append(ts, t)
	}
	return ts, nil
}

func closeAll(ts []*ort.Tensor) {
	for _, t := range ts {
		t.Close()
	}
}

// show writes what a marker sees of an image into the inputs' image i.
func show(inputs []*ort.Tensor, i int, seen [][]float32, known []place) {
	for scale, t := range inputs {
		size := 2 * len(seen[scale])
		assemble(t.Data()[i*size:(i+1)*size], seen[scale], known[scale])
	}
}
