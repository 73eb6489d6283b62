package trainer

import (
	"context"
	"time"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

// fitted is the record of the epochs.
type fitted struct {
	// losses are the mean losses of the steps of each epoch. The last epoch may be
	// incomplete.
	losses         []float64
	steps, planned int
	ended          models.Ending
}

// loadInTime loads the data set. It returns ErrTooLittleTime when MaxTime passes first.
func loadInTime(ctx context.Context, src *dataset.Source, o Options, began time.Time) (*dataset.Dataset, error) {
	if o.MaxTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, began.Add(o.MaxTime), ErrTooLittleTime)
		defer cancel()
	}
	o.begin(StageReadingImages)
	return dataset.Load(ctx, src, o.dataset())
}

// fit runs the epochs and returns the trained weights. As in PyTorch's DataLoader, the
// last batch of an epoch may be smaller; it counts as a step like any other.
//
// With checkpoints, fit continues from the last one.
//
// If the model has a decision already, the first step is taken even if the training is
// stopped, so that there is a model to hold the decision.
func fit(ctx context.Context, engine *ort.Engine, arch models.Architecture, weights models.StateDict,
	data *dataset.Dataset, level Level, o Options, began time.Time, hasDecision bool, c *checkpointer,
) (models.StateDict, fitted, error) {
	s, err := newStepper(engine, arch, weights, data.Layout, o)
	if err != nil {
		return nil, fitted{}, err
	}
	defer s.Close()
	steps := (data.Len() + level.BatchSize - 1) / level.BatchSize
	f := fitted{planned: level.Epochs * steps}
	for _, n := range []int{min(level.BatchSize, data.Len()), data.Len() % level.BatchSize} {
		if n > 0 { // create sessions now, so that the steps' durations do not include it
			if err := s.prepare(MicroBatches(n, s.h, s.w)); err != nil {
				return nil, f, err
			}
		}
	}
	budget := newTimeBudget(f.planned, data.Len(), level.BatchSize, began, o.MaxTime)
	b := batches{data: data, shuffle: streams.New(o.Seed, streams.Shuffle), size: level.BatchSize}
	started := time.Now()
	sum := 0.0
	if c.restoreEpochs(s, &f, &sum, steps) {
		budget.resume(f.steps)
		b.skip(f.steps, steps)
	}
	for {
		if f.ended = ending(budget, workers.Closed(o.Stop) && (f.steps > 0 || !hasDecision)); f.ended != "" {
			break
		}
		batch, err := b.next()
		if err != nil {
			return nil, f, err
		}
		stepStarted := time.Now()
		loss, err := s.Step(ctx, batch, level.LearningRate*budget.decay())
		if err != nil {
			if ctx.Err() != nil { // another process may continue
				c.saveEpochs(s, f, sum)
			}
			return nil, f, err
		}
		budget.addStep(time.Since(stepStarted))
		epoch, inEpoch := f.steps/steps, f.steps%steps
		if inEpoch == 0 {
			sum = 0
			f.losses = append(f.losses, 0)
		}
		f.steps++
		sum += loss
		f.losses[epoch] = sum / float64(inEpoch+1)
		if c.due() {
			c.saveEpochs(s, f, sum)
		}
		if o.Progress != nil {
			o.Progress(Progress{
				Epoch: epoch + 1, Epochs: level.Epochs, Step: f.steps, Steps: f.planned, Loss: f.losses[epoch], Losses: f.losses,
				Elapsed: time.Since(started), Remaining: budget.remaining(),
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

// ending returns why the epochs end before the next step, or "" if they continue.
func ending(b *timeBudget, stopped bool) models.Ending {
	switch {
	case stopped:
		return models.EndedByCaller
	case b.allowsStep():
		return ""
	case b.done == b.steps:
		return models.EndedComplete
	}
	return models.EndedByTime
}

// batches iterates over the images in batches, in a new random order each epoch.
type batches struct {
	data    *dataset.Dataset
	shuffle interface{ Perm(n int) []int }
	size    int
	order   []int // of the images left in this epoch
	images  [][]byte
	buffers [][]byte // hold images that are read from disk
}

// skip skips the batches of a number of steps, in epochs of perEpoch steps. It must be
// called before next.
func (b *batches) skip(steps, perEpoch int) {
	for range steps / perEpoch {
		b.shuffle.Perm(b.data.Len())
	}
	if rest := steps % perEpoch; rest > 0 {
		b.order = b.shuffle.Perm(b.data.Len())[rest*b.size:]
	}
}

// next returns the next batch, which may be smaller at the end of an epoch. The batch
// is valid until the next call.
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
