package trainer

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/heads"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

func bundle(t *testing.T, e *ort.Engine, src *dataset.Source, o Options) []byte {
	t.Helper()
	m, err := Train(t.Context(), e, src, o)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := exporter.WriteBundle(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTrain_IsDeterministicForASeed(t *testing.T) {
	o := Options{Level: 1, ImageSize: 32, Seed: 11}
	e := orttest.OpenThreads(t, 2)
	first := bundle(t, e, aFewTiles(t), o)
	if m, err := models.Read(first, models.DefaultLimits()); err != nil || m.Metadata.Decision == nil {
		t.Fatalf("no decision, error %v", err)
	}
	if !bytes.Equal(first, bundle(t, e, aFewTiles(t), o)) {
		t.Error("two trainings with the same seed differ")
	}
	o.Seed = 12
	if bytes.Equal(first, bundle(t, e, aFewTiles(t), o)) {
		t.Error("trainings with different seeds are identical")
	}
}

func TestTrain_LowersTheLossAndSetsTheThreshold(t *testing.T) {
	m := withHeads(t, orttest.Open(t))
	l := m.Metadata.TrainingLosses
	if len(l) != 10 || l[9] > l[0]/2 {
		t.Errorf("losses %v", l)
	}
	meta := m.Metadata
	if math.Abs(meta.Threshold-meta.MeanError-2*meta.StdError) > 1e-12 || meta.StdError <= 0 {
		t.Errorf("threshold %v, mean %v, std %v", meta.Threshold, meta.MeanError, meta.StdError)
	}
	// The weights changed after the last losses were computed, but the mean error must
	// be near them.
	if meta.MeanError > 1.5*l[9] || meta.MeanError < 0.3*l[9] {
		t.Errorf("mean error %v after a last loss of %v", meta.MeanError, l[9])
	}
}

// The loss of a batch, cut into micro-batches of different sizes, is the mean of its
// images' losses.
func TestStep_AddsUpMicroBatches(t *testing.T) {
	arch := models.Architecture{Channels: []int{3, 4, 5}}
	e := orttest.Open(t)
	images := make([][]byte, 11)
	for i := range images {
		images[i] = hashedImage(i, 16*16*3)
	}
	whole, err := newStepper(e, arch, hashedWeights(arch), imagefile.Layout{Size: models.Square(16)}, Options{Threads: e.Threads()})
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	loss, err := whole.Step(t.Context(), images, 1e-3)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for i := range images {
		one, err := newStepper(e, arch, hashedWeights(arch), imagefile.Layout{Size: models.Square(16)}, Options{Threads: e.Threads()})
		if err != nil {
			t.Fatal(err)
		}
		l, err := one.Step(t.Context(), images[i:i+1], 1e-3)
		one.Close()
		if err != nil {
			t.Fatal(err)
		}
		sum += l / float64(len(images))
	}
	if math.Abs(loss-sum) > 1e-6*sum {
		t.Errorf("loss of the batch %v, mean of its images' losses %v", loss, sum)
	}
}

func TestMicroBatches_AreCompleteAndEven(t *testing.T) {
	for side := 512; side >= 16; side /= 2 {
		limit := max(microBatchPixels/(side*side), 1)
		for n := 1; n <= 40; n++ {
			sizes := MicroBatches(n, side, side)
			sum := 0
			for _, s := range sizes {
				sum += s
			}
			if sum != n || slices.Max(sizes) > limit || slices.Max(sizes)-slices.Min(sizes) > 1 || slices.Min(sizes) < 1 || n > 1 && len(sizes) < 2 {
				t.Errorf("%d images of %d px in micro-batches of %v", n, side, sizes)
			}
		}
	}
}

func TestTrain_StopsWithinAStepWhenCancelled(t *testing.T) {
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	steps := 0
	o := Options{Level: 5, ImageSize: 32, Progress: func(Progress) {
		if steps++; steps == 2 {
			cancel(cause)
		}
	}}
	// Four images are too few for a decision, so the epochs begin at once.
	m, err := Train(ctx, orttest.Open(t), zipSource(t, testkit.Tiles(t, 4)), o)
	if !errors.Is(err, cause) || m != nil || steps != 2 {
		t.Errorf("after %d steps: %v, %v", steps, m, err)
	}
	if _, err := Train(ctx, orttest.Open(t), folder(t), o); !errors.Is(err, cause) {
		t.Errorf("cancelled before the start: %v", err)
	}
}

func TestProgress_CountsEveryStep(t *testing.T) {
	var last Progress
	calls := 0
	_, err := Train(t.Context(), orttest.Open(t), folder(t), Options{Level: 1, ImageSize: 16, Progress: func(p Progress) {
		calls++
		if p.Step != calls || p.Loss <= 0 || p.Remaining < 0 {
			t.Errorf("call %d: %+v", calls, p)
		}
		last = p
	}})
	if err != nil {
		t.Fatal(err)
	}
	if last.Step != last.Steps || last.Epoch != 5 || last.Steps != 5*4 || last.Remaining != 0 {
		t.Errorf("last call: %+v", last)
	}
}

func TestStage_IsReportedInOrder(t *testing.T) {
	e := orttest.Open(t)
	m := withHeads(t, e)
	want := []Stage{StageReadingImages, StageExtractingFeatures, StageTrainingHeads, StageMeasuringDetectability, StageEpochs, StageCalibrating}
	if !slices.Equal(headsStages, want) {
		t.Errorf("stages of a training %q", headsStages)
	}
	var got []Stage
	o := Options{ImageSize: 32, Stage: func(s Stage) { got = append(got, s) }}
	data, err := LoadCalibrationImages(t.Context(), e, aFewTiles(t), o)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	if _, _, err := Recalibrate(t.Context(), e, m, data, o); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []Stage{StageReadingImages, StageCalibrating}) {
		t.Errorf("stages of a calibration %q", got)
	}
}

func TestSettle_RejectsUnusableOptions(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want error
	}{
		{Options{Level: -1}, ErrLevel},
		{Options{Level: 6}, ErrLevel},
		{Options{ImageSize: 17}, ErrImageSize},
		{Options{ImageSize: 8}, ErrImageSize},
		{Options{ImageSize: 1040}, ErrImageSize},
		{Options{ImageSize: -16}, ErrImageSize},
	} {
		if _, _, err := c.o.Settle(); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
	o, level, err := Options{}.Settle()
	if err != nil || o.ImageSize != 256 || level.Number != 3 || level.Epochs != 30 || level.BatchSize != 16 || level.LearningRate != 1e-3 || level.HeadSteps < heads.MinSteps {
		t.Errorf("defaults %+v, %+v, %v", o, level, err)
	}
}
