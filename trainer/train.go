package trainer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
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

// Errors of unusable options.
var (
	// ErrImageSize is returned when an image size cannot be trained at.
	ErrImageSize = errors.New("unusable image size")
	// ErrBase is returned when the base model has another network or image size.
	ErrBase = errors.New("cannot go on from this model")
	// ErrFalseAlarmRate is returned when a false alarm rate is not between 0 and 1.
	ErrFalseAlarmRate = errors.New("unusable false alarm rate")
)

// Image sizes, in pixels. The network halves images of MinImageSize to a single pixel.
// The activations of an image of MaxImageSize take up to 100 MB.
const (
	DefaultImageSize = 256
	MinImageSize     = 16
	MaxImageSize     = 1024
)

// DefaultFalseAlarmRate is one normal image in twenty.
const DefaultFalseAlarmRate = 0.05

// Options of a training. The zero value trains at the default level and size
// with seed 0.
type Options struct {
	// Level is 1 to 5; 0 means DefaultLevel.
	Level int
	// ImageSize is the side in pixels of the square that images are resized to;
	// 0 means DefaultImageSize.
	ImageSize int
	// Tiles is how images are cut into tiles of ImageSize×ImageSize pixels; nil means that
	// whole images are resized, unless Base is a model of tiles. If its Statistics are
	// empty, Train chooses them.
	Tiles *models.Tiles
	// Input is the width and height that images are resized to; 0×0 means a square of
	// ImageSize. Settle sets both, and ImageSize to 0 for an input that is not square.
	Input models.Size
	// Fit is how images are brought to the aspect ratio of Input; empty means that of Base
	// or models.FitSquash.
	Fit models.Fit
	// Window is the range of sample values that becomes 0…1; nil means that of Base or, if
	// all images have more than 8 bits per sample, one chosen from their values.
	Window *models.Window
	// Region is the part of images to learn from and to judge; nil means that of Base or all.
	Region *models.Region
	// EightBits converts all images to 8 bits, if Window is nil.
	EightBits bool
	// mask and boxes are a Preparation's, from which Settle makes Region.
	mask  []byte
	boxes string
	// Seed is the seed of all random numbers. Without MaxTime and Stop the same seed,
	// images and options produce the same model.
	Seed int64
	// Base is a model whose weights the training starts from; nil means random
	// weights. Adam's moments start at zero.
	Base *models.Model
	// Limits bounds the data set and Images each of its files; zero means the defaults.
	Limits dataset.Limits
	Images imagefile.Limits
	// Preprocessing is that of the model to calibrate, for LoadCalibrationImages. Nil
	// means that the model is not trained yet.
	Preprocessing *models.Preprocessing
	// TempDir is the folder for images beyond Limits.MemoryBytes; empty means the
	// system's folder for temporary files.
	TempDir string
	// MaxTime is the longest Train may take; 0 means no limit. If the level's steps do
	// not fit, Train takes fewer steps with a learning rate decay and records that in
	// the metadata.
	MaxTime time.Duration
	// Threads is the number of threads; 0 means the engine's. The model does not
	// depend on it.
	Threads int
	// Niceness is the niceness of the training's threads, 0 to workers.MaxNiceness. It
	// has an effect on Linux only.
	Niceness int
	// Stop, when closed, ends the training after the current step. Train then returns
	// the model so far, and the metadata records how it ended.
	Stop <-chan struct{}
	// FalseAlarmRate is the share of normal images that may be above the threshold,
	// between 0 and 1; 0 means DefaultFalseAlarmRate.
	FalseAlarmRate float64
	// Progress, if not nil, is called after each step of the epochs, before the next
	// step begins.
	Progress func(Progress)
	// Stage, if not nil, is called when a stage begins. Stage and Progress are not
	// called concurrently.
	Stage func(Stage)

	// Checkpoints stores the state of the training, from which Train continues if it can;
	// nil means that it starts from the beginning.
	Checkpoints *Checkpoints

	// Without is the ingredient of the anomaly score to leave out; the zero value
	// leaves out nothing.
	Without decision.Ablation
	// Ablated, if not nil, is called with each ablation that shares the statistics of
	// Without, once the decision is learned.
	Ablated func([]*decision.Ablated)
}

// workers returns the worker pool of the training.
func (o Options) workers() workers.Pool {
	return workers.Pool{Threads: o.Threads, Niceness: o.Niceness}
}

// Progress is the state of the epochs after a step.
type Progress struct {
	Epoch, Epochs int // Epoch counts from 1
	Step, Steps   int // over all epochs; Step counts from 1
	// Loss is the mean loss of the steps of this epoch so far.
	Loss float64
	// Losses are the losses of all epochs so far; the last is Loss. They must not be
	// changed, and are valid until the function that received them returns.
	Losses []float64
	// Elapsed is the time since the first step began. Remaining is the expected time
	// of the steps left.
	Elapsed, Remaining time.Duration
}

// Settle returns the options with defaults filled in, and the level. The default image
// size is that of Base, if there is one. Settle returns ErrLevel, ErrImageSize,
// ErrFalseAlarmRate, ErrTiles and ErrBase.
func (o Options) Settle() (Options, Level, error) {
	if o.Level == 0 {
		o.Level = DefaultLevel
	}
	if b := o.Base; b != nil {
		if o.ImageSize == 0 && o.Input == (models.Size{}) {
			o.Input = b.Input()
		}
		p := b.Metadata.InputPreprocessing()
		o.Fit, o.Region = cmp.Or(o.Fit, p.Fit), cmp.Or(o.Region, p.Region)
		if !o.EightBits {
			o.Window = cmp.Or(o.Window, p.Window)
		}
	}
	if o.Input == (models.Size{}) {
		o.Input = models.Square(cmp.Or(o.ImageSize, DefaultImageSize))
	}
	o.ImageSize = o.Input.Side()
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
	for _, side := range []int{o.Input.W, o.Input.H} {
		if side < MinImageSize || side > MaxImageSize || side%stride != 0 {
			return o, Level{}, fmt.Errorf("%w: %d, expected a multiple of %d from %d to %d",
				ErrImageSize, side, stride, MinImageSize, MaxImageSize)
		}
	}
	o, err = o.withRegion()
	if err != nil {
		return o, Level{}, err
	}
	if err := o.checkPreprocessing(); err != nil {
		return o, Level{}, err
	}
	if b := o.Base; b != nil {
		if arch := models.DefaultArchitecture(); !b.Architecture.Equal(arch) {
			return o, Level{}, fmt.Errorf("%w: its network is %s, expected %s", ErrBase, b.Architecture, arch)
		}
		if b.Input() != o.Input {
			return o, Level{}, fmt.Errorf("%w: its images are %v pixels, expected %v", ErrBase, b.Input(), o.Input)
		}
	}
	if err := o.settleTiles(); err != nil {
		return o, Level{}, err
	}
	return o, level, nil
}

// Train reads the source's images, trains the default network on them and calibrates
// its threshold. It returns the errors of Settle, ErrNoImages, ErrDatasetTooLarge,
// ErrStorage and ErrDiverged. It returns ErrTooLittleTime or ErrStopped when MaxTime
// passes or Stop is closed before there is a model, and the context's cause within a
// step after ctx ends.
func Train(ctx context.Context, engine *ort.Engine, src *dataset.Source, o Options) (m *models.Model, err error) {
	began := time.Now()
	o, level, err := o.Settle()
	if err != nil {
		return nil, err
	}
	if o.Threads <= 0 || o.Threads > engine.Threads() {
		o.Threads = engine.Threads()
	}
	// Lowering the niceness locks a goroutine to its thread, so it must not be the
	// caller's.
	var group errgroup.Group
	group.Go(o.workers().Wrap(func() error {
		m, err = train(ctx, engine, src, o, level, began)
		return err
	}))
	if err := group.Wait(); err != nil {
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
		learned decision.Learned
	)
	checkpoints, err := newCheckpointer(ctx, engine, data, o)
	if err != nil {
		return nil, err
	}
	learn := func() (err error) {
		learned, err = checkpoints.learn(data, o, level, func() (decision.Learned, error) {
			return decision.Learn(ctx, engine, data, o.decision(level, began))
		})
		return err
	}
	epochs := func() (err error) {
		o.begin(StageEpochs)
		weights, fitted, err = fit(ctx, engine, arch, start, epochImages(data, o), level, o, began, learned.Decision != nil, checkpoints)
		return err
	}
	// The decision comes first, because it matters more: MaxTime and Stop cut the epochs
	// short.
	for _, run := range []func() error{learn, epochs} {
		if err := run(); err != nil {
			return nil, err
		}
		// Return hundreds of megabytes of features and samples to the system before ONNX
		// Runtime allocates memory outside of Go's heap.
		debug.FreeOSMemory()
	}
	if learned.Decision != nil && learned.HeadSteps == 0 && o.decision(level, began).HasHeads(learned.Decision.CalibrationImages) && workers.Closed(o.Stop) {
		fitted.ended = models.EndedByCaller
	}
	m := &models.Model{
		Architecture: arch,
		Weights:      weights,
		ImageSize:    o.ImageSize,
		Reference:    learned.Tensors,
		Metadata: models.Metadata{
			Decision:       learned.Decision,
			Detectability:  learned.Detectability,
			ModelType:      models.ModelType,
			ImageSize:      o.ImageSize,
			TrainingLosses: fitted.losses,
			ClassNames:     data.ClassNames,
			Architecture:   &arch,
			Preprocessing:  preprocessing(data, o, learned.Tiles),
			Training:       summarize(level, o, data, fitted),
		},
	}
	m.Metadata.FormatVersion = m.Metadata.Preprocessing.FormatVersion()
	m.Metadata.Training.HeadSteps = learned.HeadSteps
	if m.Metadata.ClassNames == nil && o.Base != nil {
		m.Metadata.ClassNames = o.Base.Metadata.Classes()
	}
	if m.Metadata.ClassNames == nil {
		m.Metadata.ClassNames = models.GenericClassNames()
	}
	until := time.Time{}
	if o.MaxTime > 0 {
		until = began.Add(calibrationEnd(o.MaxTime))
	}
	o.begin(StageCalibrating)
	if err := calibrate(ctx, engine, m, data, streams.New(o.Seed, streams.Calibration).Perm(data.Count()), o, until); err != nil {
		return nil, err
	}
	return m, nil
}

// dataset returns the options of dataset.Load.
func (o Options) dataset() dataset.Options {
	learned := models.StandardPreprocessing()
	if o.Base != nil {
		learned = o.Base.Metadata.InputPreprocessing()
	}
	images := imagefile.OptionsFor(learned, o.Images).WithRegion(o.Region)
	images.Fit, images.Window = o.recordedFit(), o.Window
	return dataset.Options{
		Size: o.Input, Limits: o.Limits, Images: images, KeepDepth: o.Base == nil && !o.EightBits, TempDir: o.TempDir, Workers: o.workers(),
		Tiles: o.Tiles,
	}
}

// preprocessing returns the preprocessing of a model that was trained on the data.
func preprocessing(data *dataset.Dataset, o Options, tiles *models.Tiles) *models.Preprocessing {
	o.Window = data.Window
	p := o.preprocessing(data.Upright)
	p.Tiles = tiles
	if data.MaxValue != imagefile.DefaultMaxValue {
		p.MaxValue = data.MaxValue
	}
	return p
}

// decision returns the options of decision.Learn.
func (o Options) decision(level Level, began time.Time) decision.Options {
	d := decision.Options{Seed: o.Seed, HeadSteps: level.HeadSteps, FalseAlarmRate: o.FalseAlarmRate,
		Stop: o.Stop, Workers: o.workers(), Without: o.Without, Ablated: o.Ablated, Stage: o.Stage, Tiles: o.Tiles}
	if o.MaxTime > 0 {
		d.Deadline = began.Add(o.MaxTime)
	}
	return d
}

// thresholdDeviations is the distance of the threshold of the mean squared error from
// its mean, in standard deviations. The value is the Python service's.
const thresholdDeviations = 2

// calibrate sets mean, population standard deviation (as numpy.std) and threshold of
// the mean squared error of the training images, taken in this order. It uses the
// detector that will serve the model, so that the errors are the same. If until is not
// zero, calibrate stops then, after minCalibrated images at least. The training summary
// records the number of images.
func calibrate(ctx context.Context, engine *ort.Engine, m *models.Model, data *dataset.Dataset, order []int, o Options, until time.Time) error {
	d, err := inference.NewDetector(engine, m, 1)
	if err != nil {
		return err
	}
	defer d.Close()
	if data.Tiled() != nil {
		errs, err := tileErrors(ctx, d, data, order, o, until)
		if err != nil {
			return err
		}
		setMSE(m, errs)
		return nil
	}
	errs := make([]float64, len(order))
	n, err := eachInTime(ctx, data, order, minCalibrated, until, o, func(running context.Context, i int, image []byte) (err error) {
		errs[i], err = d.MSE(running, image)
		return err
	})
	if err != nil {
		return err
	}
	setMSE(m, errs[:n])
	return nil
}

// setMSE sets the threshold of the mean squared error by those of the training images.
func setMSE(m *models.Model, errs []float64) {
	mean, std := calibration.MeanDeviation(errs)
	m.Metadata.MeanError, m.Metadata.StdError = mean, std
	m.Metadata.Threshold = mean + thresholdDeviations*std
	m.Metadata.Training.Calibrated = len(errs)
}

// maxNamedSkips bounds the number of skipped files that are named in metadata.
const maxNamedSkips = 100

// summarize returns the metadata's summary of the training.
func summarize(level Level, o Options, data *dataset.Dataset, f fitted) *models.TrainingSummary {
	base := ""
	if o.Base != nil {
		base = o.Base.SHA256
	}
	return &models.TrainingSummary{
		Level: level.Number, Epochs: level.Epochs, BatchSize: level.BatchSize, LearningRate: level.LearningRate,
		Steps: f.steps, PlannedSteps: f.planned, Ended: f.ended, MaxSeconds: o.MaxTime.Seconds(),
		Seed: o.Seed, Base: base, Images: data.Count(), Skipped: len(data.Skipped),
		SkippedFiles: data.Skipped[:min(len(data.Skipped), maxNamedSkips)], Warnings: data.Warnings,
	}
}
