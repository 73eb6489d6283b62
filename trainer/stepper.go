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

// microBatchPixels bounds the pixels of a micro-batch. A micro-batch runs on one
// thread, since several operators of a step are single-threaded. The activations of two
// images of 256×256 pixels, 11 MB, mostly fit into the processor's caches; four images
// do not. Micro-batches of one image cost more for adding up gradients and for the
// edges of matrix products.
const microBatchPixels = 2 * 256 * 256

// stepper takes the training steps of the autoencoder by gradient accumulation: it cuts
// a batch into micro-batches, weights the loss of each by its share of the images, and
// adds the gradients up in a fixed order. The result is the exact step of the whole
// batch and does not depend on the number of threads. A stepper is not safe for
// concurrent use.
type stepper struct {
	*optimizer.Adam
	engine   *ort.Engine
	options  Options // for threads and their niceness
	arch     models.Architecture
	h, w     int
	masked   bool
	gradient map[int]*ort.Session  // by size of the micro-batch
	images   []map[int]*ort.Tensor // by index and size of the micro-batch
}

// newStepper returns a stepper that starts from the weights with Adam's moments at
// zero. It must be closed.
func newStepper(engine *ort.Engine, arch models.Architecture, weights models.StateDict, l imagefile.Layout, o Options) (*stepper, error) {
	a, err := optimizer.New(engine, arch.Parameters(), weights, o.Threads)
	if err != nil {
		return nil, err
	}
	return &stepper{Adam: a, engine: engine, options: o, arch: arch, h: l.H, w: l.W, masked: l.Masked, gradient: map[int]*ort.Session{}}, nil
}

// Close releases all tensors and sessions.
func (s *stepper) Close() {
	s.Adam.Close()
	for _, sizes := range s.images {
		for _, t := range sizes {
			t.Close()
		}
	}
	for _, session := range s.gradient {
		session.Close()
	}
}

// Step takes one step of Adam on a batch of prepared images. It
// returns the batch's loss before the step: the mean squared error over all its pixels
// and channels. When ctx ends, Step returns the context's cause and leaves the weights
// unchanged.
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

// MicroBatches returns the sizes of the micro-batches of a batch of n images of h×w
// pixels. The sizes differ by one at most, so that no worker waits for another, and
// their number is even if possible. They do not depend on the number of threads.
func MicroBatches(n, h, w int) []int {
	limit := max(microBatchPixels/(h*w), 1)
	count := (n + limit - 1) / limit
	if count%2 == 1 && count < n {
		count++
	}
	sizes := make([]int, count)
	for i := range sizes {
		sizes[i] = n / count
		if i < n%count {
			sizes[i]++
		}
	}
	return sizes
}

// prepare creates the sessions and tensors for micro-batches of these sizes.
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
			lower := exporter.GradientModel
			if s.masked {
				lower = exporter.MaskedGradientModel
			}
			m, err := lower(s.arch, n, s.h, s.w, inference.Operators(s.engine))
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

// backwardImages computes the loss and gradients of micro-batch i. The weight is its
// share of the batch.
func (s *stepper) backwardImages(ctx context.Context, i int, images [][]byte, weight float32) error {
	n := len(images)
	in := s.images[i][n]
	size := models.InputChannels * s.h * s.w
	for k, pixels := range images {
		imagefile.Normalize(in.Data()[k*size:(k+1)*size], pixels)
	}
	return s.Backward(ctx, s.gradient[n], i, weight, in)
}
