package trainer

import (
	"context"
	"time"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/models"
)

// fitted is what the epochs came to.
type fitted struct {
	// losses are the mean loss of each epoch, the last of those steps that it
	// came to.
	losses         []float64
	steps, planned int
	ended          models.Ending
}

// loadInTime loads the data set, within MaxTime.
func loadInTime(ctx context.Context, src *dataset.Source, o Options, began time.Time) (*dataset.Dataset, error) {
	if o.MaxTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, began.Add(o.MaxTime), ErrTooLittleTime)
		defer cancel()
	}
	return dataset.Load(ctx, src, o.dataset())
}

// fit runs the epochs. The last batch of an epoch may be short and is a step
// like any other, as in PyTorch's DataLoader; an epoch's loss is the mean of
// its steps' losses. Where something was learnt before, the first step is taken
// whatever the caller asked for, so that there is a model to hold it.
func fit(ctx context.Context, engine *ort.Engine, arch models.Architecture, weights models.StateDict,
	data *dataset.Dataset, level Level, o Options, began time.Time, learnt bool,
) (models.StateDict, fitted, error) {
	s, err := newStepper(engine, arch, weights, data.Side, data.Side, o)
	if err != nil {
		return nil, fitted{}, err
	}
	defer s.Close()
	steps := (data.Len() + level.BatchSize - 1) / level.BatchSize
	f := fitted{planned: level.Epochs * steps}
	for _, n := range []int{min(level.BatchSize, data.Len()), data.Len() % level.BatchSize} {
		if n > 0 { // sessions are made here, so that the steps' time is theirs alone
			if err := s.prepare(MicroBatches(n, s.h, s.w)); err != nil {
				return nil, f, err
			}
		}
	}
	p := newPace(f.planned, data.Len(), level.BatchSize, began, o.MaxTime)
	b := batches{data: data, shuffle: streams.New(o.Seed, streams.Shuffle), size: level.BatchSize}
	started := time.Now()
	sum := 0.0
	for {
		if f.ended = ending(p, o.stopped() && (f.steps > 0 || !learnt)); f.ended != "" {
			break
		}
		batch, err := b.next()
		if err != nil {
			return nil, f, err
		}
		stepped := time.Now()
		loss, err := s.Step(ctx, batch, level.LearningRate*p.rate())
		if err != nil {
			return nil, f, err
		}
		p.took(time.Since(stepped))
		epoch, inEpoch := f.steps/steps, f.steps%steps
		if inEpoch == 0 {
			sum = 0
			f.losses = append(f.losses, 0)
		}
		f.steps++
		sum += loss
		f.losses[epoch] = sum / float64(inEpoch+1)
		if o.Progress != nil {
			o.Progress(Progress{
				Epoch: epoch + 1, Epochs: level.Epochs, Step: f.steps, Steps: f.planned, Loss: f.losses[epoch],
				Elapsed: time.Since(started), Remaining: p.left(),
			})
		}
	}
	switch {
	case f.steps > 0:
		return s.StateDict(), f, nil
	case f.ended == models.EndedByCaller:
		return nil, f, ErrStopped
	default:
		return nil, f, ErrTooLittleTime
	}
}

// ending says whether and why the training ends before the next step.
func ending(p *pace, stopped bool) models.Ending {
	switch {
	case stopped:
		return models.EndedByCaller
	case p.more():
		return ""
	case p.done == p.steps:
		return models.EndedComplete
	}
	return models.EndedByTime
}

// batches deals the images out in a new order each epoch.
type batches struct {
	data    *dataset.Dataset
	shuffle interface{ Perm(n int) []int }
	size    int
	order   []int // what is left of this epoch
	images  [][]byte
	buffers [][]byte // of images that lie on disk
}

// next is the next batch, the last of an epoch being what is left. It is valid
// until the one after it.
func (b *batches) next() ([][]byte, error) {
	if len(b.order) == 0 {
		b.order = b.shuffle.Perm(b.data.Len())
	}
	n := min(b.size, len(b.order))
	b.images = b.images[:0]
	for i, at := range b.order[:n] {
		if len(b.buffers) <= i {
			b.buffers = append(b.buffers, nil)
		}
		image, err := b.data.Image(at, &b.buffers[i])
		if err != nil {
			return nil, err
		}
		b.images = append(b.images, image)
	}
	b.order = b.order[n:]
	return b.images, nil
}
