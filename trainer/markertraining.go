package trainer

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// markerTraining trains one marker. It must be closed.
type markerTraining struct {
	engine   *ort.Engine
	energies *energies
	data     *Dataset
	marking
	options Options
	number  int
	scales  []models.NormalityScale
	samples []sample

	*adam    // nil until there are samples
	gradient *ort.Session
	places   [markerParts][]*ort.Tensor // of a part of a batch, by scale
	target   [markerParts]*ort.Tensor
}

// learnt are the images that the marker learns from.
func (t *markerTraining) learnt() []int {
	var ks []int
	for k := t.number; k < len(t.order); k += models.Markers {
		ks = append(ks, k)
	}
	return ks
}

// train gives the marker's parameters, or nil when there was no time or the
// caller asked for an end.
func (t *markerTraining) train(ctx context.Context, steps int, deadline time.Time) (models.StateDict, error) {
	began := time.Now()
	if err := t.paint(ctx, steps*samplesPerStep, began, deadline); err != nil || len(t.samples) < partImagesOfMarker {
		return nil, err
	}
	if err := t.allocate(); err != nil {
		return nil, err
	}
	random := stream(t.options.Seed, streamMarkers+uint64(t.number))
	stepping := time.Now()
	for step := range steps {
		if t.options.stopped() {
			return nil, nil
		}
		progress := float64(step) / float64(steps)
		if !deadline.IsZero() {
			progress = max(progress, float64(time.Since(stepping))/float64(deadline.Sub(stepping)))
			if deadline.Before(stepping) || progress >= 1 {
				break
			}
		}
		if err := t.step(ctx, oneCycle(progress), random); err != nil {
			return nil, err
		}
	}
	if t.steps < min(steps, minMarkerSteps) {
		return nil, nil
	}
	return t.StateDict(), nil
}

// oneCycle is the learning rate at that share of the steps.
func oneCycle(progress float64) float64 {
	wave := func(from, to, at float64) float64 { return to + (from-to)*(1+math.Cos(math.Pi*at))/2 }
	if progress < markerRise {
		return wave(markerRate*markerStart, markerRate, progress/markerRise)
	}
	return wave(markerRate, 0, (progress-markerRise)/(1-markerRise))
}

// allocate makes what the steps need.
func (t *markerTraining) allocate() error {
	ps := models.MarkerParameters(t.data.Side, t.number)
	start := initial(ps, stream(t.options.Seed, streamMarkers+models.Markers+uint64(t.number)))
	var err error
	if t.adam, err = newAdam(t.engine, ps, start, 1); err != nil {
		return err
	}
	if err := t.prepare(markerParts); err != nil {
		return err
	}
	t.options.without.blind(t.weights()[0].Data(), t.scales)
	m, err := exporter.MarkerGradientModel(partImagesOfMarker, t.data.Side, t.number, inference.Operators(t.engine))
	if err != nil {
		return err
	}
	if t.gradient, err = newSession(t.engine, m, 1); err != nil {
		return err
	}
	p := t.scales[0].Places
	for i := range markerParts {
		if t.places[i], err = seenTensors(t.scales, partImagesOfMarker); err != nil {
			return err
		}
		if t.target[i], err = ort.NewTensor(partImagesOfMarker, 1, p, p); err != nil {
			return err
		}
	}
	return nil
}

// Close gives all memory and sessions back.
func (t *markerTraining) Close() {
	if t.adam != nil {
		t.adam.Close()
	}
	for i := range markerParts {
		closeAll(t.places[i])
		t.target[i].Close()
	}
	t.gradient.Close()
}

// step draws a batch, in the order of its parts, and takes a step of Adam on it.
func (t *markerTraining) step(ctx context.Context, rate float64, random *rand.Rand) error {
	learnt := t.learnt()
	var batches [markerParts][]sample
	for i := range batches {
		for range spoiltImages {
			batches[i] = append(batches[i], t.samples[random.IntN(len(t.samples))])
		}
		for range goodImages {
			batches[i] = append(batches[i], t.good(learnt[random.IntN(len(learnt))]))
		}
	}
	err := t.options.inParallel(ctx, markerParts, func(running context.Context, part int) error {
		places, target := t.places[part], t.target[part]
		area := len(target.Data()) / partImagesOfMarker
		clear(target.Data())
		for i, s := range batches[part] {
			show(places, i, s.seen, t.fold(s.image))
			copy(target.Data()[i*area:], s.target)
		}
		return t.backward(running, t.gradient, part, 1.0/markerParts, append(slices.Clip(places), target)...)
	})
	if err != nil {
		return err
	}
	if _, err := t.apply(ctx, markerParts, rate); err != nil {
		return fmt.Errorf("training marker %d: %w", t.number, err)
	}
	t.options.without.blind(t.weights()[0].Data(), t.scales)
	return nil
}
