package trainer

import (
	"context"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/optimizer"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// partPixels bounds the pixels that one part of a batch holds. A part stays on
// one thread, since several operators of a step use one whatever they are given.
// What lies between the layers of two images of 256 px, 11 MB, stays in the caches for the
// most part, that of four does not; a part for each image makes the gradients that are
// added up and the ends of products weigh more.
const partPixels = 2 * 256 * 256

// stepper takes the training steps of the network. A step is the exact step of the
// whole batch: the batch is cut into parts, each part's loss is weighted by its
// share, and the gradients are added up in a fixed order, whatever the number of
// threads. It is for one goroutine.
type stepper struct {
	*optimizer.Adam
	engine *ort.Engine
	// options say with how many threads of which priority.
	options  Options
	arch     models.Architecture
	h, w     int
	gradient map[int]*ort.Session  // by the number of images in a part
	images   []map[int]*ort.Tensor // by part and the number of images in it
}

// newStepper starts from those weights with Adam's moments at zero. It must be
// closed.
func newStepper(engine *ort.Engine, arch models.Architecture, weights models.StateDict, h, w int, o Options) (*stepper, error) {
	a, err := optimizer.New(engine, arch.Parameters(), weights, o.Threads)
	if err != nil {
		return nil, err
	}
	return &stepper{Adam: a, engine: engine, options: o, arch: arch, h: h, w: w, gradient: map[int]*ort.Session{}}, nil
}

// Close gives all memory and sessions back.
func (s *stepper) Close() {
	s.Adam.Close()
	for _, part := range s.images {
		for _, t := range part {
			t.Close()
		}
	}
	for _, session := range s.gradient {
		session.Close()
	}
}

// Step takes one step of Adam on a batch of prepared images (H×W×3 bytes each)
// and returns the batch's loss before the step: the mean squared error over all
// its pixels and channels. When the context ends it returns the context's cause
// and the state is as it was before the step.
func (s *stepper) Step(ctx context.Context, images [][]byte, learningRate float64) (float64, error) {
	all := len(images)
	sizes := MicroBatches(all, s.h, s.w)
	if err := s.prepare(sizes); err != nil {
		return 0, err
	}
	batches := make([][][]byte, len(sizes))
	for i, n := range sizes {
		batches[i], images = images[:n], images[n:]
	}
	err := s.options.workers().Each(ctx, len(sizes), func(running context.Context, i int) error {
		return s.backwardImages(running, i, batches[i], float32(float64(len(batches[i]))/float64(all)))
	})
	if err != nil {
		return 0, err
	}
	return s.Apply(ctx, len(sizes), learningRate)
}

// MicroBatches is how a step cuts a batch of n images of h×w pixels: into parts whose
// sizes differ by one at most, so that no worker waits for another, and an even
// number of them where that is possible. It does not depend on the number of
// threads.
func MicroBatches(n, h, w int) []int {
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
	if err := s.Adam.Prepare(len(sizes)); err != nil {
		return err
	}
	for len(s.images) < len(sizes) {
		s.images = append(s.images, map[int]*ort.Tensor{})
	}
	for i, n := range sizes {
		if s.images[i][n] == nil {
			t, err := ort.NewTensor(n, models.InputChannels, s.h, s.w)
			if err != nil {
				return err
			}
			s.images[i][n] = t
		}
		if s.gradient[n] == nil {
			m, err := exporter.GradientModel(s.arch, n, s.h, s.w, inference.Operators(s.engine))
			if err != nil {
				return err
			}
			if s.gradient[n], err = optimizer.NewSession(s.engine, m, max(1, s.options.Threads/len(sizes))); err != nil {
				return err
			}
		}
	}
	return nil
}

// backwardImages computes the loss and the gradients of a part of those images.
func (s *stepper) backwardImages(ctx context.Context, part int, images [][]byte, weight float32) error {
	n := len(images)
	in := s.images[part][n]
	size := models.InputChannels * s.h * s.w
	for i, pixels := range images {
		imagefile.Normalize(in.Data()[i*size:(i+1)*size], pixels)
	}
	return s.Backward(ctx, s.gradient[n], part, weight, in)
}
