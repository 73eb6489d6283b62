package trainer

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"golang.org/x/sync/errgroup"
)

// How markers are trained. The figures were chosen on data sets of several kinds
// together, see docs/detection.md.
const (
	// minMarked is how many normal images it takes: each marker learns from half
	// of them.
	minMarked = 16
	// minMarkerSteps is how many steps a marker must have come to: one of fewer is
	// worse than none.
	minMarkerSteps = 100
	// markerShare is the part of MaxTime that both markers may take.
	markerShare = 0.25
	// spoiltShare is the part of a marker's time for painting defects, the rest
	// is for its steps.
	spoiltShare = 0.4
	// samplesPerStep is how many spoilt images are painted for each step, and
	// maxSampleBytes bounds what they take in memory.
	samplesPerStep = 2
	maxSampleBytes = 160 << 20
	// A batch comes in two parts of so many spoilt and normal images each.
	markerParts              = 2
	spoiltImages, goodImages = 6, 2
	partImagesOfMarker       = spoiltImages + goodImages
	// The learning rate rises to markerRate over the first markerRise of the
	// steps, from 1/25 of it, and falls to nothing along a cosine (Smith and
	// Topin, "Super-Convergence", 2018; PyTorch's OneCycleLR).
	markerRate, markerRise, markerStart = 3e-3, 0.3, 1.0 / 25
)

// marking is what markers learn from: the images' numbers in the data set, their
// features, and by scale and fold what is known of places, the last of all.
type marking struct {
	order []int
	x     features
	known [][]place
}

// fold gives what is known of places without image k.
func (m marking) fold(k int) []place {
	folds := len(m.known[0]) - 1
	at := make([]place, len(m.known))
	for i := range at {
		at[i] = m.known[i][k%folds]
	}
	return at
}

// marked are trained markers, and by image how far its highest place is from
// those of other images, by the marker that has not learnt from it.
type marked struct {
	tensors    models.StateDict
	deviations []float32
	// steps are those of the marker that came to the fewest.
	steps int
}

// sample is an image that a marker learns from: its features by scale, and where
// a defect was painted on it (nil for nowhere).
type sample struct {
	image  int
	seen   [][]float32
	target []float32
}

// markers trains the markers of defects, each on half of the images. Of few
// images, and where there is no time, it gives none.
func markers(ctx context.Context, engine *ort.Engine, e *energies, data *Dataset, m marking, o Options) (*marked, error) {
	level, err := LevelOf(o.Level)
	if err != nil {
		return nil, err
	}
	n := len(m.order)
	if n < minMarked || level.MarkerSteps == 0 || o.without.markers {
		return nil, nil
	}
	began := time.Now()
	out := &marked{steps: level.MarkerSteps}
	peaks := make([]float64, n)
	for k := range models.Markers {
		deadline := time.Time{}
		if o.MaxTime > 0 {
			share := markerShare * float64(o.MaxTime) * float64(k+1) / models.Markers
			deadline = began.Add(time.Duration(share))
		}
		t := &markerTraining{engine: engine, energies: e, data: data, marking: m, options: o, number: k, scales: models.MarkerScales(data.Side)}
		tensors, err := t.train(ctx, level.MarkerSteps, deadline)
		t.Close()
		if err != nil || tensors == nil {
			return nil, err
		}
		if err := t.judge(ctx, tensors, peaks); err != nil {
			return nil, err
		}
		out.tensors = append(out.tensors, tensors...)
		out.steps = min(out.steps, t.steps)
	}
	mean, std := meanStd(peaks)
	offset, slope := float32(mean), float32(1/max(std, 1e-3))
	for _, p := range peaks {
		out.deviations = append(out.deviations, (float32(p)-offset)*slope)
	}
	ps := models.MarkersParameters(data.Side)
	for i, v := range []float32{offset, slope} {
		p := ps[len(ps)-2+i]
		out.tensors = append(out.tensors, models.Tensor{Name: p.Name, Shape: p.Shape, Data: []float32{v}})
	}
	return out, nil
}

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

	*adam          // nil until there are samples
	gradient       *ort.Session
	places, target [markerParts]*ort.Tensor // of a part of a batch
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
		select {
		case <-t.options.Stop:
			return nil, nil
		default:
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

// paint makes so many samples with defects, fewer where memory or time end.
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
	learnt := t.learnt()
	samples := make([]sample, n)
	group, running := errgroup.WithContext(ctx)
	workers := t.options.Threads
	for worker := range workers {
		group.Go(t.options.worker(func() error {
			observer, err := t.energies.observer()
			if err != nil {
				return err
			}
			defer observer.Close()
			side := t.data.Side
			spoilt, mask := make([]byte, side*side*models.InputChannels), make([]float32, side*side)
			var buffer, second []byte
			for i := worker; i < n; i += workers {
				if !until.IsZero() && time.Now().After(until) {
					return nil
				}
				// A stream of its own for each sample: who paints it does not matter.
				random := rand.New(rand.NewPCG(uint64(t.options.Seed), uint64(t.number)<<32|uint64(i)|1<<62))
				k := learnt[i%len(learnt)]
				image, err := t.data.Image(t.order[k], &buffer)
				if err != nil {
					return err
				}
				other, err := t.data.Image(t.order[learnt[random.IntN(len(learnt))]], &second)
				if err != nil {
					return err
				}
				newSpoiler(random, side).spoil(spoilt, mask, image, other)
				seen, err := observer.see(running, spoilt, len(t.scales))
				if err != nil {
					return err
				}
				samples[i] = sample{image: k, seen: seen, target: highestOf(mask, side, p)}
			}
			return nil
		}))
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
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
	m, err := exporter.MarkerGradientModel(partImagesOfMarker, t.data.Side, t.number)
	if err != nil {
		return err
	}
	if t.gradient, err = newSession(t.engine, m, 1); err != nil {
		return err
	}
	p := t.scales[0].Places
	for i := range markerParts {
		if t.places[i], err = ort.NewTensor(partImagesOfMarker, models.MarkerChannels(t.data.Side), p, p); err != nil {
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
		t.places[i].Close()
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
		size, area := len(places.Data())/partImagesOfMarker, len(target.Data())/partImagesOfMarker
		clear(target.Data())
		for i, s := range batches[part] {
			assemble(places.Data()[i*size:(i+1)*size], s.seen, t.fold(s.image), t.scales)
			copy(target.Data()[i*area:], s.target)
		}
		return t.backward(running, t.gradient, part, 1.0/markerParts, places, target)
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

// good is image k as it is.
func (t *markerTraining) good(k int) sample {
	s := sample{image: k}
	for i := range t.scales {
		s.seen = append(s.seen, t.x[i][k])
	}
	return s
}

// judge sets the peaks of the images that this marker has not learnt from: twice
// its highest logit, as the sum of both markers is what counts.
func (t *markerTraining) judge(ctx context.Context, tensors models.StateDict, peaks []float64) error {
	model, err := exporter.MarkerModel(t.data.Side, t.number)
	if err != nil {
		return err
	}
	session, err := t.engine.NewSession(model.ONNX, model.Inputs, model.Outputs, ort.SessionOptions{Threads: 1})
	if err != nil {
		return err
	}
	defer session.Close()
	var inputs []*ort.Tensor
	defer func() {
		for _, x := range inputs {
			x.Close()
		}
	}()
	add := func(data []float32, shape ...int) error {
		x, err := ort.NewTensor(shape...)
		if err == nil {
			copy(x.Data(), data)
			inputs = append(inputs, x)
		}
		return err
	}
	p := t.scales[0].Places
	if err := add(nil, 1, models.MarkerChannels(t.data.Side), p, p); err != nil {
		return err
	}
	for _, w := range tensors {
		if err := add(w.Data, w.Shape...); err != nil {
			return err
		}
	}
	logits, err := ort.NewTensor(1, 1, p, p)
	if err != nil {
		return err
	}
	defer logits.Close()
	for k := range t.order {
		if k%models.Markers == t.number {
			continue
		}
		assemble(inputs[0].Data(), t.good(k).seen, t.fold(k), t.scales)
		if err := session.Run(ctx, inputs, []*ort.Tensor{logits}); err != nil {
			return err
		}
		peaks[k] = 2 * float64(slices.Max(logits.Data()))
	}
	return nil
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
