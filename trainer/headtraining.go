package trainer

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
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/synthetic"
	"github.com/deepmed/anomaly/models"
)

const (
	// paintingShare is the part of a head's time for painting anomalies, the rest is
	// for its steps.
	paintingShare = 0.4
	// samplesPerStep is how many anomalies are painted for each step, which sees
	// twelve of all of them; two were no better. maxSampleBytes bounds what they take
	// in memory.
	samplesPerStep = 1
	maxSampleBytes = 160 << 20
	// A batch comes in parts of so many painted and normal images each: four, so that
	// two threads are both busy to the end, when one of them was held up.
	headParts                 = 4
	paintedImages, goodImages = 3, 1
	partImagesOfHead          = paintedImages + goodImages
	// The learning rate rises to headRate over the first headRise of the steps, from
	// headStart of it, and falls to nothing along a cosine (Smith and Topin,
	// "Super-Convergence", 2018; PyTorch's OneCycleLR).
	headRate, headRise, headStart = 3e-3, 0.3, 1.0 / 25
	// leastDeviation is the least standard deviation that is assumed of a channel,
	// which features of 0…6 behind a ReLU6 do not reach but where they never vary.
	leastDeviation = 1e-3
)

// sample is an image that a head learns from: its feature maps, and where an anomaly
// was painted on it (nil for nowhere).
type sample struct {
	image  int
	maps   [][]float32
	target []float32
}

// headTraining trains one head. It must be closed.
type headTraining struct {
	engine    *ort.Engine
	extractor *extractor.Extractor
	normals   *normals
	options   Options
	number    int
	samples   []sample
	// mean and precision standardize each channel of the maps, one behind the other.
	mean, precision []float32

	*adam    // nil until there are samples
	gradient *ort.Session
	features [headParts][]*ort.Tensor // of a part of a batch, by map
	target   [headParts]*ort.Tensor
}

// learnt are the images that the head learns from.
func (t *headTraining) learnt() []int {
	var ks []int
	for k := range t.normals.len() {
		if learntBy(k) == t.number {
			ks = append(ks, k)
		}
	}
	return ks
}

// train gives the head's parameters, or nil when there was no time or the caller asked
// for an end.
func (t *headTraining) train(ctx context.Context, steps int, deadline time.Time) (models.StateDict, error) {
	began := time.Now()
	if err := t.paint(ctx, steps*samplesPerStep, began, deadline); err != nil || len(t.samples) < partImagesOfHead {
		return nil, err
	}
	t.standardize()
	if err := t.allocate(); err != nil {
		return nil, err
	}
	random := stream(t.options.Seed, streamHeads+uint64(t.number))
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
	if t.steps < min(steps, minHeadSteps) {
		return nil, nil
	}
	return t.folded(t.StateDict()), nil
}

// errStopped ends the painting when the caller asked for an end.
var errStopped = errors.New("trainer: the caller asked for an end")

// paint makes so many samples with anomalies, fewer where memory or time end, and none
// when the caller asks for an end.
func (t *headTraining) paint(ctx context.Context, n int, began, deadline time.Time) error {
	finest := t.normals.maps[0]
	bytes := 4 * finest.Side * finest.Side
	for _, m := range t.normals.maps {
		bytes += 4 * m.Floats()
	}
	n = min(n, max(maxSampleBytes/bytes, partImagesOfHead))
	until := time.Time{}
	if !deadline.IsZero() {
		until = began.Add(time.Duration(paintingShare * float64(deadline.Sub(began))))
	}
	learnt, side := t.learnt(), t.normals.data.Side
	samples := make([]sample, n)
	seen, err := observe(ctx, t.extractor, t.options, n, 0, 0, until, func() func(int) ([]byte, error) {
		painted, mask := make([]byte, side*side*models.InputChannels), make([]float32, side*side)
		var buffer, second []byte
		return func(i int) ([]byte, error) {
			if t.options.stopped() {
				return nil, errStopped
			}
			// A stream of its own for each sample: who paints it does not matter.
			random := rand.New(rand.NewPCG(uint64(t.options.Seed), uint64(t.number)<<32|uint64(i)|1<<62))
			k := learnt[i%len(learnt)]
			image, err := t.normals.image(k, &buffer)
			if err != nil {
				return nil, err
			}
			other, err := t.normals.image(learnt[random.IntN(len(learnt))], &second)
			if err != nil {
				return nil, err
			}
			synthetic.NewPainter(random, side).Paint(painted, mask, image, other)
			samples[i] = sample{image: k, target: highestOf(mask, side, finest)}
			return painted, nil
		}
	})
	if errors.Is(err, errStopped) {
		return nil
	}
	if err != nil {
		return err
	}
	for i := range samples {
		samples[i].maps = seen[i]
	}
	t.samples = slices.DeleteFunc(samples, func(s sample) bool { return s.maps == nil })
	return nil
}

// highestOf gives the largest number of each patch of the map.
func highestOf(mask []float32, side int, m extractor.Map) []float32 {
	out, at := make([]float32, m.Side*m.Side), make([]int, side)
	for x := range at {
		at[x] = extractor.PatchOf(m, side, x)
	}
	for i, v := range mask {
		p := at[i/side]*m.Side + at[i%side]
		out[p] = max(out[p], v)
	}
	return out
}

// standardize finds the mean and the deviation of each channel over all patches of
// the images that are learnt from.
func (t *headTraining) standardize() {
	for i, m := range t.normals.maps {
		area := m.Side * m.Side
		for c := range m.Channels {
			n, sum, squares := 0.0, 0.0, 0.0
			for _, k := range t.learnt() {
				for _, v := range t.normals.features[k][i][c*area : (c+1)*area] {
					sum += float64(v)
					squares += float64(v) * float64(v)
				}
				n += float64(area)
			}
			mean := sum / n
			t.mean = append(t.mean, float32(mean))
			t.precision = append(t.precision, float32(1/max(math.Sqrt(max(squares/n-mean*mean, 0)), leastDeviation)))
		}
	}
}

// folded brings the standardization into the first layer, so that the head takes
// features as they are.
func (t *headTraining) folded(sd models.StateDict) models.StateDict {
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

// allocate makes what the steps need.
func (t *headTraining) allocate() error {
	side := t.normals.data.Side
	ps := models.HeadParameters(t.number)
	start := initial(ps, stream(t.options.Seed, streamHeads+models.HeadCount+uint64(t.number)))
	var err error
	if t.adam, err = newAdam(t.engine, ps, start, 1); err != nil {
		return err
	}
	if err := t.prepare(headParts); err != nil {
		return err
	}
	m, err := exporter.HeadGradientModel(partImagesOfHead, side, t.number, inference.Operators(t.engine))
	if err != nil {
		return err
	}
	if t.gradient, err = newSession(t.engine, m, 1); err != nil {
		return err
	}
	p := t.normals.maps[0].Side
	for i := range headParts {
		if t.features[i], err = featureTensors(t.normals.maps, partImagesOfHead); err != nil {
			return err
		}
		if t.target[i], err = ort.NewTensor(partImagesOfHead, 1, p, p); err != nil {
			return err
		}
	}
	return nil
}

// Close gives all memory and sessions back.
func (t *headTraining) Close() {
	if t.adam != nil {
		t.adam.Close()
	}
	for i := range headParts {
		closeAll(t.features[i])
		t.target[i].Close()
	}
	t.gradient.Close()
}

// step draws a batch, in the order of its parts, and takes a step of Adam on it.
func (t *headTraining) step(ctx context.Context, rate float64, random *rand.Rand) error {
	learnt := t.learnt()
	var batches [headParts][]sample
	for i := range batches {
		for range paintedImages {
			batches[i] = append(batches[i], t.samples[random.IntN(len(t.samples))])
		}
		for range goodImages {
			k := learnt[random.IntN(len(learnt))]
			batches[i] = append(batches[i], sample{image: k, maps: t.normals.features[k]})
		}
	}
	err := t.options.inParallel(ctx, headParts, func(running context.Context, part int) error {
		features, target := t.features[part], t.target[part]
		area := len(target.Data()) / partImagesOfHead
		clear(target.Data())
		for i, s := range batches[part] {
			t.show(features, i, s.maps)
			copy(target.Data()[i*area:], s.target)
		}
		return t.backward(running, t.gradient, part, 1.0/headParts, append(slices.Clip(features), target)...)
	})
	if err != nil {
		return err
	}
	if _, err := t.apply(ctx, headParts, rate); err != nil {
		return fmt.Errorf("training head %d: %w", t.number, err)
	}
	return nil
}

// show writes an image's standardized feature maps into the inputs' image i.
func (t *headTraining) show(inputs []*ort.Tensor, i int, maps [][]float32) {
	channel := 0
	for k, m := range t.normals.maps {
		area := m.Side * m.Side
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
