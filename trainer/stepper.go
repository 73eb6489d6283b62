package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"golang.org/x/sync/errgroup"
)

// partPixels bounds the pixels that one part of a batch holds. A part stays on
// one thread, since several operators of a step use one whatever they are given.
// What a part costs whatever its size, of kernels to be transformed and operators
// to be started, is that of a fifth of an image of 256 px; large parts do not stay in
// the processor's caches. Two images of 384 px, four of 256 and eight of 128 were
// the best of what divides a batch of 16.
const partPixels = 2 * 384 * 384

// stepper holds a training's state, weights and Adam's moments, in ONNX
// Runtime's tensors, and takes training steps. A step is the exact step of the
// whole batch: the batch is cut into parts, each part's loss is weighted by its
// share, and the gradients are added up in a fixed order, whatever the number of
// threads. It is for one goroutine.
type stepper struct {
	engine *ort.Engine
	// options say with how many threads of which priority.
	options Options
	arch    models.Architecture
	h, w    int
	steps   int
	// now is what the next step starts from, next where it writes; each holds
	// the parameters, the first and the second moments, in that order.
	now, next []*ort.Tensor
	stepSize  *ort.Tensor
	correct   *ort.Tensor
	gradient  map[int]*ort.Session // by the number of images in a part
	update    map[int]*ort.Session // by the number of parts
	parts     []*part
}

// part is the memory of one part of a batch.
type part struct {
	images map[int]*ort.Tensor // by the number of images
	weight *ort.Tensor
	loss   *ort.Tensor
	grads  []*ort.Tensor
}

// newStepper starts from those weights with Adam's moments at zero. It must be
// closed.
func newStepper(engine *ort.Engine, arch models.Architecture, weights models.StateDict, h, w int, o Options) (*stepper, error) {
	s := &stepper{
		engine: engine, options: o, arch: arch, h: h, w: w,
		gradient: map[int]*ort.Session{}, update: map[int]*ort.Session{},
	}
	err := s.allocate(weights)
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *stepper) allocate(weights models.StateDict) error {
	var err error
	if s.stepSize, err = ort.NewTensor(1); err != nil {
		return err
	}
	if s.correct, err = ort.NewTensor(1); err != nil {
		return err
	}
	ps := s.arch.Parameters()
	for range 3 { // parameters, first moments, second moments
		for _, p := range ps {
			for _, side := range []*[]*ort.Tensor{&s.now, &s.next} {
				t, err := ort.NewTensor(p.Shape...)
				if err != nil {
					return err
				}
				*side = append(*side, t)
			}
		}
	}
	for i, t := range weights.Ordered(ps) {
		copy(s.now[i].Data(), t.Data)
	}
	return nil
}

// Close gives all memory and sessions back.
func (s *stepper) Close() {
	for _, t := range slices.Concat(s.now, s.next, []*ort.Tensor{s.stepSize, s.correct}) {
		t.Close()
	}
	for _, p := range s.parts {
		p.close()
	}
	for _, m := range []map[int]*ort.Session{s.gradient, s.update} {
		for _, session := range m {
			session.Close()
		}
	}
}

// Weights copies the parameters out.
func (s *stepper) Weights() models.StateDict {
	var sd models.StateDict
	for i, p := range s.arch.Parameters() {
		sd = append(sd, models.Tensor{Name: p.Name, Shape: p.Shape, Data: slices.Clone(s.now[i].Data())})
	}
	return sd
}

// Step takes one step of Adam on a batch of prepared images (H×W×3 bytes each)
// and returns the batch's loss before the step: the mean squared error over all
// its pixels and channels. When the context ends it returns the context's cause
// and the state is as it was before the step.
func (s *stepper) Step(ctx context.Context, images [][]byte, learningRate float64) (float64, error) {
	sizes := PartSizes(len(images), s.h, s.w)
	if err := s.prepare(sizes); err != nil {
		return 0, err
	}
	workers := min(s.options.Threads, len(sizes))
	group, running := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	start := 0
	for i, n := range sizes {
		batch := images[start : start+n]
		start += n
		group.Go(s.options.worker(func() error {
			return s.backward(running, s.parts[i], batch, float32(float64(n)/float64(len(images))))
		}))
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return 0, err
	}
	loss := 0.0
	for _, p := range s.parts[:len(sizes)] {
		loss += float64(p.loss.Data()[0])
	}
	if math.IsNaN(loss) || math.IsInf(loss, 0) {
		return 0, fmt.Errorf("%w: the loss of step %d is %v", errDiverged, s.steps+1, loss)
	}
	return loss, s.adam(ctx, len(sizes), learningRate)
}

// errDiverged is returned when the loss is no longer a number.
var errDiverged = errors.New("trainer: the training diverged")

// PartSizes is how a step cuts a batch of n images of h×w pixels: into parts whose
// sizes differ by one at most, so that no worker waits for another, and an even
// number of them where that is possible. It does not depend on the number of
// threads.
func PartSizes(n, h, w int) []int {
	limit := max(partPixels/(h*w), 1)
	parts := (n + limit - 1) / limit
	if parts%2 == 1 && parts < n {
		parts++
	}
	sizes := make([]int, parts)
	for i := range sizes {
		sizes[i] = n / parts
		if i < n%parts {
			sizes[i]++
		}
	}
	return sizes
}

// prepare makes the sessions and the memory that parts of these sizes need.
func (s *stepper) prepare(sizes []int) error {
	for len(s.parts) < len(sizes) {
		p, err := newPart(s.arch)
		if err != nil {
			return err
		}
		s.parts = append(s.parts, p)
	}
	for i, n := range sizes {
		if s.parts[i].images[n] == nil {
			t, err := ort.NewTensor(n, models.InputChannels, s.h, s.w)
			if err != nil {
				return err
			}
			s.parts[i].images[n] = t
		}
		if s.gradient[n] == nil {
			m, err := exporter.GradientModel(s.arch, n, s.h, s.w)
			if err != nil {
				return err
			}
			threads := max(1, s.options.Threads/len(sizes))
			if s.gradient[n], err = s.session(m, threads); err != nil {
				return err
			}
		}
	}
	if s.update[len(sizes)] == nil {
		m, err := exporter.UpdateModel(s.arch.Parameters(), len(sizes))
		if err != nil {
			return err
		}
		if s.update[len(sizes)], err = s.session(m, s.options.Threads); err != nil {
			return err
		}
	}
	return nil
}

func (s *stepper) session(m *exporter.StepModel, threads int) (*ort.Session, error) {
	return s.engine.NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Threads: threads})
}

// backward computes the loss and the gradients of one part.
func (s *stepper) backward(ctx context.Context, p *part, images [][]byte, weight float32) error {
	n := len(images)
	in := p.images[n]
	size := models.InputChannels * s.h * s.w
	for i, pixels := range images {
		inference.Normalize(in.Data()[i*size:(i+1)*size], pixels)
	}
	p.weight.Data()[0] = weight
	inputs := append([]*ort.Tensor{in, p.weight}, s.parameters()...)
	return s.gradient[n].Run(ctx, inputs, append([]*ort.Tensor{p.loss}, p.grads...))
}

func (s *stepper) parameters() []*ort.Tensor { return s.now[:len(s.now)/3] }

// adam applies the gradients of the first so many parts.
func (s *stepper) adam(ctx context.Context, parts int, learningRate float64) error {
	t := float64(s.steps + 1)
	s.stepSize.Data()[0] = float32(learningRate / (1 - math.Pow(network.Beta1, t)))
	s.correct.Data()[0] = float32(1 / math.Sqrt(1-math.Pow(network.Beta2, t)))
	inputs := append([]*ort.Tensor{s.stepSize, s.correct}, s.now...)
	for _, p := range s.parts[:parts] {
		inputs = append(inputs, p.grads...)
	}
	if err := s.update[parts].Run(ctx, inputs, s.next); err != nil {
		return err
	}
	s.now, s.next = s.next, s.now
	s.steps++
	return nil
}

func newPart(arch models.Architecture) (p *part, err error) {
	p = &part{images: map[int]*ort.Tensor{}}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.weight, err = ort.NewTensor(1); err != nil {
		return p, err
	}
	if p.loss, err = ort.NewTensor(1); err != nil {
		return p, err
	}
	for _, param := range arch.Parameters() {
		t, err := ort.NewTensor(param.Shape...)
		if err != nil {
			return p, err
		}
		p.grads = append(p.grads, t)
	}
	return p, nil
}

func (p *part) close() {
	for _, t := range p.images {
		t.Close()
	}
	p.weight.Close()
	p.loss.Close()
	for _, t := range p.grads {
		t.Close()
	}
}
