package heads

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/optimizer"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/internal/synthetic"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

const (
	// paintingShare is the share of a head's time for painting synthetic anomalies. Its
	// steps take the rest.
	paintingShare = 0.4
	// samplesPerStep is the number of synthetic anomalies per step. Each step draws twelve
	// of all of them. Two per step were not better.
	samplesPerStep = 1
	// maxSampleBytes bounds the memory of a head's synthetic anomalies, in bytes.
	maxSampleBytes = 160 << 20
	// A batch has microBatches micro-batches of anomalousImages images with a synthetic
	// anomaly and normalImages without. With four micro-batches, two threads stay busy if
	// one of them is delayed.
	microBatches                  = 4
	anomalousImages, normalImages = 3, 1
	microBatchSize                = anomalousImages + normalImages
	// The learning rate rises from startRate·peakRate to peakRate over the first warmUp
	// of the steps and then falls to 0, each along a half cosine (Smith and Topin,
	// "Super-Convergence", 2018; PyTorch's OneCycleLR).
	peakRate, warmUp, startRate = 3e-3, 0.3, 1.0 / 25
	// minDeviation is the smallest standard deviation of a channel. Features after a
	// ReLU6, 0 to 6, are below it only if they are constant.
	minDeviation = 1e-3
)

// sample is an image that a head learns from.
type sample struct {
	image int // normal image
	maps  [][]float32
	// target is the visibility of the synthetic anomaly in each patch, 0 to 1; nil without
	// an anomaly.
	target []float32
}

// training trains one head. It must be closed.
type training struct {
	engine    *ort.Engine
	extractor *extractor.Extractor
	images    Images
	options   Options
	number    int
	samples   []sample
	// mean and precision standardize each channel of all maps.
	mean, precision []float32

	*optimizer.Adam // nil until there are samples
	gradient        *ort.Session
	features        [microBatches][]*ort.Tensor // by micro-batch and map
	target          [microBatches]*ort.Tensor
	inside          [microBatches]*ort.Tensor // nil unless images have masks
}

// own returns the indexes of the images that the head learns from.
func (t *training) own() []int {
	var ks []int
	for k := range t.images.Features {
		if learnsFrom(k) == t.number {
			ks = append(ks, k)
		}
	}
	return ks
}

// train returns the head's parameters, or nil if there was no time or it was stopped.
func (t *training) train(ctx context.Context, deadline time.Time) (models.StateDict, error) {
	began := time.Now()
	steps := t.options.Steps
	if err := t.paint(ctx, steps*samplesPerStep, began, deadline); err != nil || len(t.samples) < microBatchSize {
		return nil, err
	}
	t.standardize()
	if err := t.allocate(); err != nil {
		return nil, err
	}
	random := streams.New(t.options.Seed, streams.HeadSteps(t.number))
	stepping := time.Now()
	for step := range steps {
		if workers.Closed(t.options.Stop) {
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
	if t.Steps() < min(steps, MinSteps) {
		return nil, nil
	}
	return t.folded(t.StateDict()), nil
}

// errStopped ends paint when the training is stopped.
var errStopped = errors.New("heads: stopped")

// paint sets up to n samples with synthetic anomalies: fewer if memory or time do not
// suffice, and none if it is stopped.
func (t *training) paint(ctx context.Context, n int, began, deadline time.Time) error {
	finest := t.images.Maps[0]
	bytes := 4 * finest.Area()
	for _, m := range t.images.Maps {
		bytes += 4 * m.Floats()
	}
	n = min(n, max(maxSampleBytes/bytes, microBatchSize))
	until := time.Time{}
	if !deadline.IsZero() {
		until = began.Add(time.Duration(paintingShare * float64(deadline.Sub(began))))
	}
	own, l := t.own(), t.images.Layout
	samples := make([]sample, n)
	features, err := t.extractor.ObserveAll(ctx, t.options.Workers, extractor.Request{Images: n, Until: until, Painter: func() func(int) ([]byte, error) {
		image, mask := make([]byte, l.Bytes()), make([]float32, l.Area())
		painted := make([]byte, models.InputChannels*l.Area())
		var buffer, second []byte
		return func(i int) ([]byte, error) {
			if workers.Closed(t.options.Stop) {
				return nil, errStopped
			}
			random := streams.Sample(t.options.Seed, t.number, i)
			k := own[i%len(own)]
			original, err := t.images.At(k, &buffer)
			if err != nil {
				return nil, err
			}
			other, err := t.images.At(own[random.IntN(len(own))], &second)
			if err != nil {
				return nil, err
			}
			before := l.Colours(original)
			synthetic.NewGenerator(random, l.W, l.H, l.Mask(original)).Generate(painted, mask, before, l.Colours(other))
			l.Paint(image, original, before, painted)
			samples[i] = sample{image: k, target: maxPool(mask, l.Size, finest)}
			return image, nil
		}
	}})
	if errors.Is(err, errStopped) {
		return nil
	}
	if err != nil {
		return err
	}
	for i := range samples {
		samples[i].maps = features[i]
	}
	t.samples = slices.DeleteFunc(samples, func(s sample) bool { return s.maps == nil })
	return nil
}

// maxPool returns the largest value of the mask in each patch of map m.
func maxPool(mask []float32, size models.Size, m extractor.Map) []float32 {
	out := make([]float32, m.Area())
	for i, v := range mask {
		if v <= 0 {
			continue
		}
		p := extractor.PatchOf(m, size, i%size.W, i/size.W)
		out[p] = max(out[p], v)
	}
	return out
}

// standardize computes mean and precision (one over the standard deviation) of each
// channel over all patches of the images that the head learns from.
func (t *training) standardize() {
	for i, m := range t.images.Maps {
		area := m.Area()
		for c := range m.Channels {
			n, sum, squares := 0.0, 0.0, 0.0
			for _, k := range t.own() {
				for _, v := range t.images.Features[k][i][c*area : (c+1)*area] {
					sum += float64(v)
					squares += float64(v) * float64(v)
				}
				n += float64(area)
			}
			mean := sum / n
			t.mean = append(t.mean, float32(mean))
			t.precision = append(t.precision, float32(1/max(math.Sqrt(max(squares/n-mean*mean, 0)), minDeviation)))
		}
	}
}

// folded returns the parameters with the standardization folded into the first layer, so
// that the head applies to features that are not standardized.
func (t *training) folded(sd models.StateDict) models.StateDict {
	weight, bias := sd[0].Data, sd[1].Data
	channels := len(t.mean)
	for o := range bias {
		sum := 0.0
		for c := range channels {
			w := &weight[o*channels+c]
			*w *= t.precision[c]
			sum += float64(*w) * float64(t.mean[c])
		}
		bias[o] -= float32(sum)
	}
	return sd
}

// allocate creates the tensors and sessions of the steps.
func (t *training) allocate() error {
	l := t.images.Layout
	ps := models.HeadParameters(t.number)
	start := network.InitialWeights(ps, streams.New(t.options.Seed, streams.HeadWeights(t.number)))
	var err error
	if t.Adam, err = optimizer.New(t.engine, ps, start, 1); err != nil {
		return err
	}
	if err := t.Prepare(microBatches); err != nil {
		return err
	}
	m, err := exporter.HeadGradientModel(microBatchSize, l.Size, t.number, l.Masked, inference.Operators(t.engine))
	if err != nil {
		return err
	}
	if t.gradient, err = optimizer.NewSession(t.engine, m, 1); err != nil {
		return err
	}
	p := t.images.Maps[0]
	for i := range microBatches {
		if t.features[i], err = featureTensors(t.images.Maps, microBatchSize); err != nil {
			return err
		}
		if t.target[i], err = ort.NewTensor(microBatchSize, 1, p.H, p.W); err != nil {
			return err
		}
		if !l.Masked {
			continue
		}
		if t.inside[i], err = ort.NewTensor(microBatchSize, 1, p.H, p.W); err != nil {
			return err
		}
	}
	return nil
}

// Close releases all tensors and sessions.
func (t *training) Close() {
	if t.Adam != nil {
		t.Adam.Close()
	}
	for i := range microBatches {
		closeAll(t.features[i])
		t.target[i].Close()
		t.inside[i].Close()
	}
	t.gradient.Close()
}

// step draws a batch at random and takes a step of Adam.
func (t *training) step(ctx context.Context, rate float64, random *rand.Rand) error {
	own := t.own()
	var batches [microBatches][]sample
	for i := range batches {
		for range anomalousImages {
			batches[i] = append(batches[i], t.samples[random.IntN(len(t.samples))])
		}
		for range normalImages {
			k := own[random.IntN(len(own))]
			batches[i] = append(batches[i], sample{image: k, maps: t.images.Features[k]})
		}
	}
	err := t.options.Workers.Each(ctx, microBatches, func(running context.Context, k int) error {
		features, target := t.features[k], t.target[k]
		area := len(target.Data()) / microBatchSize
		clear(target.Data())
		for i, s := range batches[k] {
			t.load(features, i, s.maps)
			copy(target.Data()[i*area:], s.target)
			if t.inside[k] != nil {
				weigh(t.inside[k].Data()[i*area:(i+1)*area], t.images.inside(s.image))
			}
		}
		inputs := append(slices.Clip(features), target)
		if t.inside[k] != nil {
			inputs = append(inputs, t.inside[k])
		}
		return t.Backward(running, t.gradient, k, 1.0/microBatches, inputs...)
	})
	if err != nil {
		return err
	}
	if _, err := t.Apply(ctx, microBatches, rate); err != nil {
		return fmt.Errorf("training head %d: %w", t.number, err)
	}
	return nil
}

// weigh sets the weights of an image's patches in the loss; see network.HeadGradient.Inside.
func weigh(to []float32, inside []bool) {
	n := 0
	for _, in := range inside {
		if in {
			n++
		}
	}
	for p, in := range inside {
		to[p] = 0
		if in {
			to[p] = float32(len(inside)) / float32(n)
		}
	}
}

// load stores an image's standardized feature maps as image i of the inputs.
func (t *training) load(inputs []*ort.Tensor, i int, maps [][]float32) {
	channel := 0
	for k, m := range t.images.Maps {
		area := m.Area()
		out := inputs[k].Data()[i*m.Floats() : (i+1)*m.Floats()]
		for c := range m.Channels {
			mean, precision := t.mean[channel], t.precision[channel]
			for p, v := range maps[k][c*area : (c+1)*area] {
				out[c*area+p] = (v - mean) * precision
			}
			channel++
		}
	}
}

// oneCycle returns the learning rate after a share of the steps, 0 to 1.
func oneCycle(progress float64) float64 {
	cosine := func(from, to, at float64) float64 { return to + (from-to)*(1+math.Cos(math.Pi*at))/2 }
	if progress < warmUp {
		return cosine(peakRate*startRate, peakRate, progress/warmUp)
	}
	return cosine(peakRate, 0, (progress-warmUp)/(1-warmUp))
}
