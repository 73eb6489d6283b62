package trainer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/decision"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
	"golang.org/x/sync/errgroup"
)

// ErrImageSize is returned when an image size cannot be trained at.
var ErrImageSize = errors.New("unusable image size")

// ErrBase is returned when a training cannot go on from the model it was given:
// its network or its image size is another.
var ErrBase = errors.New("cannot go on from this model")

// The image sizes a training takes: the smallest is what the network halves to
// a single pixel, the largest keeps one image's activations within 100 MB.
const (
	DefaultImageSize = 256
	MinImageSize     = 16
	MaxImageSize     = 1024
)

// ErrFalseAlarmRate is returned when a false alarm rate is no share.
var ErrFalseAlarmRate = errors.New("unusable false alarm rate")

// DefaultFalseAlarmRate is one normal image in twenty.
const DefaultFalseAlarmRate = 0.05

// Options of a training. The zero value trains at the default level and size
// with seed 0.
type Options struct {
	// Level is 1 to 5; 0 means DefaultLevel.
	Level int
	// ImageSize is the side of the square images are resized to, in pixels;
	// 0 means DefaultImageSize.
	ImageSize int
	// Seed decides the initial weights and the order of the images. The same
	// seed gives the same model.
	Seed int64
	// Base is a model whose weights the training starts from instead of random
	// ones; nil for none. Adam's moments start anew.
	Base *models.Model
	// Limits bounds the data set and Images each of its files; zero means the defaults.
	Limits dataset.Limits
	Images imagefile.Limits
	// TempDir is where images lie that Limits.MemoryBytes keeps out of memory;
	// empty means the system's folder for temporary files.
	TempDir string
	// MaxTime is how long Train may take; 0 means as long as the level takes.
	// When the level's steps do not fit it takes those that do, with a learning
	// rate that falls towards the end, and says so in the metadata.
	MaxTime time.Duration
	// Threads is how many threads the training computes with; 0 means the
	// engine's. The model does not depend on it.
	Threads int
	// Niceness is how far the training's threads stand back behind others, up to
	// workers.MaxNiceness; 0 for not at all. It counts on Linux only.
	Niceness int
	// Stop, when closed, ends the training after the step under way: the model
	// is the one so far, and its metadata says so.
	Stop <-chan struct{}
	// FalseAlarmRate is the share of normal images that may be called anomalous:
	// the threshold is drawn for it. 0 means DefaultFalseAlarmRate.
	FalseAlarmRate float64
	// Progress, when set, is called after every step, before the next begins.
	Progress func(Progress)

	// Without leaves an ingredient of the anomaly score out; the zero value leaves out
	// none.
	Without decision.Ablation
}

// workers returns the goroutines of the training.
func (o Options) workers() workers.Pool {
	return workers.Pool{Threads: o.Threads, Niceness: o.Niceness}
}

// Progress tells how far a training is.
type Progress struct {
	Epoch, Epochs int // Epoch counts from 1
	Step, Steps   int // over the whole training
	// Loss is the mean over the steps of this epoch so far.
	Loss float64
	// Elapsed is the time since the first step began, Remaining what is left
	// at that pace.
	Elapsed, Remaining time.Duration
}

// Settle fills in defaults and checks the options. Without an image size a
// training takes that of its Base. It returns ErrLevel, ErrImageSize and
// ErrBase.
func (o Options) Settle() (Options, Level, error) {
	if o.Level == 0 {
		o.Level = DefaultLevel
	}
	if o.ImageSize == 0 && o.Base != nil {
		o.ImageSize = o.Base.ImageSize
	}
	if o.ImageSize == 0 {
		o.ImageSize = DefaultImageSize
	}
	if o.FalseAlarmRate == 0 {
		o.FalseAlarmRate = DefaultFalseAlarmRate
	}
	if !(o.FalseAlarmRate > 0 && o.FalseAlarmRate < 1) {
		return o, Level{}, fmt.Errorf("%w: %v, expected a number between 0 and 1", ErrFalseAlarmRate, o.FalseAlarmRate)
	}
	if o.Limits == (dataset.Limits{}) {
		o.Limits = dataset.DefaultLimits()
	}
	if o.Images == (imagefile.Limits{}) {
		o.Images = imagefile.DefaultLimits()
	}
	level, err := LevelOf(o.Level)
	if err != nil {
		return o, Level{}, err
	}
	stride := models.DefaultArchitecture().Stride()
	if o.ImageSize < MinImageSize || o.ImageSize > MaxImageSize || o.ImageSize%stride != 0 {
		return o, Level{}, fmt.Errorf("%w: %d, expected a multiple of %d from %d to %d",
			ErrImageSize, o.ImageSize, stride, MinImageSize, MaxImageSize)
	}
	if b := o.Base; b != nil {
		if arch := models.DefaultArchitecture(); !b.Architecture.Equal(arch) {
			return o, Level{}, fmt.Errorf("%w: its network is %s, expected %s", ErrBase, b.Architecture, arch)
		}
		if b.ImageSize != o.ImageSize {
			return o, Level{}, fmt.Errorf("%w: its images are %d×%d pixels, %d×%d were asked for", ErrBase,
				b.ImageSize, b.ImageSize, o.ImageSize, o.ImageSize)
		}
	}
	return o, level, nil
}

// Train reads the source's images, trains the default network on them and
// calibrates its threshold. It returns the errors of Settle and Load,
// ErrTooLittleTime and ErrStopped when time or caller ended it before there was a
// model, ErrDiverged, and the context's cause when that ends first, within a step.
func Train(ctx context.Context, engine *ort.Engine, src *dataset.Source, o Options) (m *models.Model, err error) {
	began := time.Now()
	o, level, err := o.Settle()
	if err != nil {
		return nil, err
	}
	if o.Threads <= 0 || o.Threads > engine.Threads() {
		o.Threads = engine.Threads()
	}
	// A goroutine of its own may keep a thread of lower priority.
	var alone errgroup.Group
	alone.Go(o.workers().Wrap(func() error {
		m, err = train(ctx, engine, src, o, level, began)
		return err
	}))
	if err := alone.Wait(); err != nil {
		return nil, err
	}
	return m, nil
}

func train(ctx context.Context, engine *ort.Engine, src *dataset.Source, o Options, level Level, began time.Time) (*models.Model, error) {
	data, err := loadInTime(ctx, src, o, began)
	if err != nil {
		return nil, err
	}
	defer data.Close()
	arch := models.DefaultArchitecture()
	start := network.InitialWeights(arch.Parameters(), streams.New(o.Seed, streams.Weights))
	if o.Base != nil {
		start = o.Base.Weights
	}
	var (
		weights models.StateDict
		fitted  fitted
		known   decision.Learned
	)
	epochs := func() (err error) {
		weights, fitted, err = fit(ctx, engine, arch, start, data, level, o, began, known.Decision != nil)
		return err
	}
	normal := func() (err error) {
		known, err = decision.Learn(ctx, engine, data, o.decision(level, began))
		return err
	}
	// What decides comes first: a limit of time, or a caller who asks for an end, cuts
	// the epochs, which fill what is left.
	for _, part := range []func() error{normal, epochs} {
		if err := part(); err != nil {
			return nil, err
		}
		// What one part held, features and samples of hundreds of megabytes, is not
		// kept beside what the next one takes from outside of Go's heap.
		debug.FreeOSMemory()
	}
	if known.Decision != nil && known.HeadSteps == 0 && o.decision(level, began).HasHeads(known.Decision.CalibrationImages) && o.stopped() {
		fitted.ended = models.EndedByCaller
	}
	m := &models.Model{
		Architecture: arch,
		Weights:      weights,
		ImageSize:    o.ImageSize,
		Reference:    known.Tensors,
		Metadata: models.Metadata{
			Decision:       known.Decision,
			Detectability:  known.Detectability,
			ModelType:      models.ModelType,
			ImageSize:      o.ImageSize,
			TrainingLosses: fitted.losses,
			ClassNames:     data.ClassNames,
			FormatVersion:  models.FormatVersion,
			Architecture:   &arch,
			Preprocessing:  models.StandardPreprocessing(),
			Training:       summarize(level, o, data, fitted),
		},
	}
	m.Metadata.Training.HeadSteps = known.HeadSteps
	if m.Metadata.ClassNames == nil && o.Base != nil {
		m.Metadata.ClassNames = o.Base.Metadata.Classes()
	}
	if m.Metadata.ClassNames == nil {
		m.Metadata.ClassNames = models.GenericClassNames()
	}
	until := time.Time{}
	if o.MaxTime > 0 {
		until = began.Add(finishBy(o.MaxTime))
	}
	if err := calibrate(ctx, engine, m, data, streams.New(o.Seed, streams.Calibration).Perm(data.Len()), o, until); err != nil {
		return nil, err
	}
	return m, nil
}

// dataset returns the options of reading the data set.
func (o Options) dataset() dataset.Options {
	return dataset.Options{Side: o.ImageSize, Limits: o.Limits, Images: o.Images, TempDir: o.TempDir, Workers: o.workers()}
}

// decision returns the options of what the model decides by.
func (o Options) decision(level Level, began time.Time) decision.Options {
	d := decision.Options{Seed: o.Seed, HeadSteps: level.HeadSteps, FalseAlarmRate: o.FalseAlarmRate,
		Stop: o.Stop, Workers: o.workers(), Without: o.Without}
	if o.MaxTime > 0 {
		d.Deadline = began.Add(o.MaxTime)
	}
	return d
}

// thresholdDeviations is how many standard deviations above the mean error of
// the training images the threshold lies: the Python service's choice.
const thresholdDeviations = 2

// calibrate measures the training images in that order with the trained model,
// through the same detector that will serve it, and sets mean, standard deviation
// (of the population, as numpy's std) and threshold. When until is not zero it
// ends there, once minCalibrated are measured; the summary says how many were.
func calibrate(ctx context.Context, engine *ort.Engine, m *models.Model, data *dataset.Dataset, order []int, o Options, until time.Time) error {
	d, err := inference.NewDetector(engine, m, 1)
	if err != nil {
		return err
	}
	defer d.Close()
	errs := make([]float64, len(order))
	var next atomic.Int64
	err = o.workers().Each(ctx, o.Threads, func(running context.Context, _ int) error {
		var buffer []byte
		for {
			if !until.IsZero() && next.Load() >= minCalibrated && time.Now().After(until) {
				return nil
			}
			i := int(next.Add(1)) - 1
			if i >= len(order) {
				return nil
			}
			image, err := data.Image(order[i], &buffer)
			if err != nil {
				return err
			}
			if errs[i], err = d.MSE(running, image); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return err
	}
	// Every image whose number was taken was measured.
	errs = errs[:min(int(next.Load()), len(errs))]
	mean, std := calibration.MeanDeviation(errs)
	m.Metadata.MeanError, m.Metadata.StdError = mean, std
	m.Metadata.Threshold = mean + thresholdDeviations*std
	m.Metadata.Training.Calibrated = len(errs)
	return nil
}

// stopped says whether the caller asked for an end.
func (o Options) stopped() bool {
	select {
	case <-o.Stop:
		return true
	default:
		return false
	}
}

// maxNamedSkips bounds the skipped files that the metadata names.
const maxNamedSkips = 100

func summarize(level Level, o Options, data *dataset.Dataset, f fitted) *models.TrainingSummary {
	base := ""
	if o.Base != nil {
		base = o.Base.SHA256
	}
	return &models.TrainingSummary{
		Level: level.Number, Epochs: level.Epochs, BatchSize: level.BatchSize, LearningRate: level.LearningRate,
		Steps: f.steps, PlannedSteps: f.planned, Ended: f.ended, MaxSeconds: o.MaxTime.Seconds(),
		Seed: o.Seed, Base: base, Images: data.Len(), Skipped: len(data.Skipped),
		SkippedFiles: data.Skipped[:min(len(data.Skipped), maxNamedSkips)], Warnings: data.Warnings,
	}
}
