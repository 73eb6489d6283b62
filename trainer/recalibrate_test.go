package trainer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// fakeModel has the members of a fake anomaly score: the logarithms of the mean and of
// the variance of each channel's brightness.
type fakeModel struct{ offsets, slopes []float32 }

func (f *fakeModel) members(pixels []byte) []float64 {
	out := make([]float64, 6)
	n := float64(len(pixels) / 3)
	for c := range 3 {
		sum, squares := 0.0, 0.0
		for i := c; i < len(pixels); i += 3 {
			v := float64(pixels[i])
			sum, squares = sum+v, squares+v*v
		}
		out[c] = math.Log(1 + sum/n)
		out[c+3] = math.Log(1 + squares/n - sum/n*sum/n)
	}
	return out
}

// score joins the members by the fake model's offsets and slopes.
func (f *fakeModel) score(_ context.Context, pixels []byte) (scores, error) {
	members := f.members(pixels)
	c := calibration.Calibration{Offsets: f.offsets, Slopes: f.slopes, Weights: slices.Repeat([]float32{1.0 / 6}, 6)}
	return scores{anomaly: c.Join(members), mse: 0.25, members: members}, nil
}

func (f *fakeModel) gauge() gauge {
	return gauge{
		score: f.score,
		standardize: func(_ *models.Model, offsets, slopes []float32) error {
			f.offsets, f.slopes = offsets, slopes
			return nil
		},
	}
}

// noisyImages returns n images of random noise, brighter by the given amount (0 to 255).
func noisyImages(t *testing.T, r *rand.Rand, n int, brighter float64) *dataset.Dataset {
	t.Helper()
	const side = 16
	files := map[string][]byte{}
	for i := range n {
		img := image.NewRGBA(image.Rect(0, 0, side, side))
		base, spread := 90+brighter+8*r.NormFloat64(), math.Exp(2+0.3*r.NormFloat64())
		for k := range side * side {
			v := uint8(min(max(base+spread*r.NormFloat64(), 0), 255))
			img.Set(k%side, k/side, color.RGBA{v, uint8(0.9 * float64(v)), uint8(0.8 * float64(v)), 255})
		}
		var b bytes.Buffer
		if err := png.Encode(&b, img); err != nil {
			t.Fatal(err)
		}
		files[fmt.Sprintf("%04d.png", i)] = b.Bytes()
	}
	data, err := LoadCalibrationImages(t.Context(), orttest.Open(t), zipSource(t, files), Options{ImageSize: side, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { data.Close() })
	return data
}

// falseAlarms returns the share of images above the model's threshold.
func falseAlarms(t *testing.T, m *models.Model, g gauge, data *dataset.Dataset) float64 {
	t.Helper()
	_, threshold := m.Metadata.Measure()
	var buffer []byte
	alarms := 0
	for i := range data.Len() {
		pixels, err := data.Image(i, &buffer)
		if err != nil {
			t.Fatal(err)
		}
		s, err := g.score(t.Context(), pixels)
		if err != nil {
			t.Fatal(err)
		}
		if s.anomaly > threshold {
			alarms++
		}
	}
	return float64(alarms) / float64(data.Len())
}

func TestRecalibrate_RestoresTheFalseAlarmRateAfterAShift(t *testing.T) {
	const rate, shift = 0.05, 30
	r := rand.New(rand.NewPCG(1, 2))
	f := &fakeModel{offsets: make([]float32, 6), slopes: slices.Repeat([]float32{1}, 6)}
	g := f.gauge()
	o := Options{FalseAlarmRate: rate, Threads: 2}
	m := &models.Model{Metadata: models.Metadata{Decision: &models.Decision{Measure: models.MeasureBandMahalanobis, Threshold: 1}}}
	first, report, err := recalibrate(t.Context(), m, noisyImages(t, r, 199, 0), g, o)
	if err != nil {
		t.Fatal(err)
	}
	if report.Shift != nil {
		t.Errorf("a model without scores has shift %+v", report.Shift)
	}
	if got := falseAlarms(t, first, g, noisyImages(t, r, 200, 0)); got > 2*rate {
		t.Errorf("share of false alarms without a shift %v", got)
	}
	shifted := noisyImages(t, r, 200, shift)
	if got := falseAlarms(t, first, g, shifted); got < 0.5 {
		t.Fatalf("share of false alarms with the shift %v, expected more", got)
	}
	second, report, err := recalibrate(t.Context(), first, noisyImages(t, r, 199, shift), g, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := falseAlarms(t, second, g, shifted); got > 2*rate {
		t.Errorf("share of false alarms after the calibration %v, expected about %v", got, rate)
	}
	if s := report.Shift; s == nil || !s.Significant() || s.Deviations < 1 || report.AboveBefore.Share < 0.5 || s.Above != report.AboveBefore {
		t.Errorf("report %+v, shift %+v", report, s)
	}
	if first.Metadata.Decision.Threshold == second.Metadata.Decision.Threshold || report.Before != first.Metadata.Decision.Threshold {
		t.Errorf("thresholds %v and %v, reported %v", first.Metadata.Decision.Threshold, second.Metadata.Decision.Threshold, report.Before)
	}
}

// Threshold, MeanError and StdError still describe the mean squared error. The summary
// of the training and the given model do not change.
func TestRecalibrate_DescribesItselfInMetadata(t *testing.T) {
	e := orttest.Open(t)
	trained, err := Train(t.Context(), e, aFewTiles(t), brief(Options{Level: 1, ImageSize: 32, FalseAlarmRate: 0.2}))
	if err != nil {
		t.Fatal(err)
	}
	trained.SHA256 = "of a file"
	before := *trained.Metadata.Decision
	files := testkit.Tiles(t, 30)
	files["broken.png"] = []byte("prose")
	data, err := LoadCalibrationImages(t.Context(), e, zipSource(t, files), Options{ImageSize: 32})
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	var bundles [][]byte
	for _, threads := range []int{1, 2} {
		m, r, err := Recalibrate(t.Context(), e, trained, data, Options{Threads: threads})
		if err != nil {
			t.Fatal(err)
		}
		d := m.Metadata.Decision
		if d.CalibrationImages != 30 || d.FalseAlarmRate != 0.2 || d.Measure != before.Measure || len(d.Scores) != 30 || d.Threshold != r.After || r.Before != before.Threshold {
			t.Errorf("%+v, report %+v", d, r)
		}
		if on := d.CalibratedOn; on == nil || on.Images != 30 || on.Skipped != 1 || on.SkippedFiles[0].Name != "broken.png" || on.Model != "of a file" {
			t.Errorf("%+v", on)
		}
		if m.Metadata.Training != trained.Metadata.Training || trained.Metadata.Decision.Threshold != before.Threshold || trained.Metadata.Decision.CalibratedOn != nil {
			t.Error("the training's summary or the given model was changed")
		}
		if md := m.Metadata; math.Abs(md.Threshold-(md.MeanError+2*md.StdError)) > 1e-12 || md.MeanError == trained.Metadata.MeanError {
			t.Errorf("threshold %v, mean %v, deviation %v", md.Threshold, md.MeanError, md.StdError)
		}
		var b bytes.Buffer
		if err := exporter.WriteBundle(&b, m); err != nil {
			t.Fatal(err)
		}
		bundles = append(bundles, b.Bytes())
		if read, err := models.Read(b.Bytes(), models.DefaultLimits()); err != nil || read.Metadata.Decision.CalibratedOn == nil || len(read.Metadata.Decision.Scores) != 30 {
			t.Errorf("read again: %v", err)
		}
	}
	if !bytes.Equal(bundles[0], bundles[1]) {
		t.Error("one thread and two produce different bytes")
	}
}

func TestRecalibrate_SetsTheThresholdOfTheMeanSquaredError(t *testing.T) {
	e := orttest.Open(t)
	plain, err := Train(t.Context(), e, zipSource(t, testkit.Tiles(t, 4)), brief(Options{Level: 1, ImageSize: 32}))
	if err != nil {
		t.Fatal(err)
	}
	data, err := LoadCalibrationImages(t.Context(), e, aFewTiles(t), Options{ImageSize: 32})
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	m, r, err := Recalibrate(t.Context(), e, plain, data, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := m.Metadata.Decision
	if d == nil || d.Measure != models.MeasureMSE || d.Threshold != d.Scores[17]*(1+calibration.RoundingShare) || r.Before != plain.Metadata.Threshold {
		t.Errorf("%+v, report %+v", d, r)
	}
	// 18 images support a rate of 1/19.
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "0.053") || !slices.Equal(d.CalibratedOn.Warnings, r.Warnings) {
		t.Errorf("warnings %q", r.Warnings)
	}
}

func TestLoadCalibrationImages_RejectsTooFew(t *testing.T) {
	e := orttest.Open(t)
	broken := testkit.Tiles(t, 7)
	for i := range 4 {
		broken[fmt.Sprint(i, ".png")] = []byte("prose")
	}
	for name, c := range map[string]struct {
		files map[string][]byte
		want  error
		text  string
	}{
		"none":           {nil, dataset.ErrNoImages, ""},
		"seven":          {testkit.Tiles(t, 7), ErrTooFewCalibrationImages, "got 7, expected at least 8"},
		"seven readable": {broken, ErrTooFewCalibrationImages, "got 7 and 4 that cannot be read, expected at least 8"},
	} {
		_, err := LoadCalibrationImages(t.Context(), e, zipSource(t, c.files), Options{ImageSize: 16})
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRecalibrate_EndsWithItsContextAndTime(t *testing.T) {
	f := &fakeModel{offsets: make([]float32, 6), slopes: make([]float32, 6)}
	g := f.gauge()
	m := &models.Model{Metadata: models.Metadata{Threshold: 1}}
	data := noisyImages(t, rand.New(rand.NewPCG(3, 4)), 30, 0)
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("the client left")
	g.score = func(ctx context.Context, pixels []byte) (scores, error) {
		cancel(left)
		return f.score(ctx, pixels)
	}
	if _, _, err := recalibrate(ctx, m, data, g, Options{Threads: 2}); !errors.Is(err, left) {
		t.Errorf("%v", err)
	}
	g = f.gauge()
	_, r, err := recalibrate(t.Context(), m, data, g, Options{Threads: 1, MaxTime: time.Nanosecond})
	if err != nil || r.Images != calibration.MinImages || !strings.Contains(strings.Join(r.Warnings, " "), "time for 8 of 30") {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRecalibrate_RejectsUnusableScoresAndRates(t *testing.T) {
	f := &fakeModel{offsets: make([]float32, 6), slopes: make([]float32, 6)}
	m := &models.Model{Metadata: models.Metadata{Threshold: 1}}
	data := noisyImages(t, rand.New(rand.NewPCG(5, 6)), 8, 0)
	for _, rate := range []float64{-1, 1, math.NaN()} {
		if _, _, err := recalibrate(t.Context(), m, data, f.gauge(), Options{Threads: 1, FalseAlarmRate: rate}); !errors.Is(err, ErrFalseAlarmRate) {
			t.Errorf("rate %v: %v", rate, err)
		}
	}
	g := f.gauge()
	g.score = func(context.Context, []byte) (scores, error) { return scores{mse: math.NaN()}, nil }
	if _, _, err := recalibrate(t.Context(), m, data, g, Options{Threads: 1}); !errors.Is(err, inference.ErrNotFinite) {
		t.Errorf("%v", err)
	}
	// An invalid rate in the model is ignored.
	m.Metadata.Decision = &models.Decision{Measure: models.MeasureMSE, Threshold: 1, FalseAlarmRate: 7}
	if _, r, err := recalibrate(t.Context(), m, data, f.gauge(), Options{Threads: 1}); err != nil || r.FalseAlarmRate != DefaultFalseAlarmRate {
		t.Errorf("%+v, %v", r, err)
	}
}

// A calibration changes offsets, slopes and thresholds only.
func TestRecalibrate_StandardizesTheMembers(t *testing.T) {
	m := withHeads(t, orttest.Open(t))
	m.Metadata.Detectability = &models.Detectability{}
	given := slices.Clone(m.Reference)
	files := testkit.Tiles(t, 60)
	for name := range testkit.Tiles(t, 30) {
		delete(files, name)
	}
	fresh := loadTiles(t, files)
	again, report, err := Recalibrate(t.Context(), orttest.Open(t), m, fresh, Options{FalseAlarmRate: 0.1})
	if err != nil {
		t.Fatal(err)
	}
	if !sameTensors(m.Reference, given) || m.Metadata.Detectability == nil {
		t.Error("the given model was changed")
	}
	if err := again.CheckReference(); err != nil {
		t.Fatal(err)
	}
	last := len(m.Reference) - 3
	if !sameTensors(again.Reference[:last], m.Reference[:last]) {
		t.Error("the patch statistics were changed")
	}
	for i, changed := range []bool{true, true, false} {
		if before, after := m.Reference[last+i], again.Reference[last+i]; slices.Equal(before.Data, after.Data) == changed {
			t.Errorf("%s: %v, before the calibration %v", after.Name, after.Data, before.Data)
		}
	}
	d := again.Metadata.Decision
	if d.Backbone == nil || *d.Backbone != *models.EmbeddedBackbone() || d.CalibrationImages != 30 || d.Threshold != report.After || again.Metadata.Detectability != nil {
		t.Errorf("%+v", d)
	}
	if err := again.Metadata.Validate(); err != nil {
		t.Error(err)
	}
	// The calibration computes each image's score with slopes that leave the image out,
	// so the model's scores differ a little.
	detector, err := inference.NewDetector(orttest.Open(t), again, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer detector.Close()
	var scores []float64
	var buffer []byte
	for i := range fresh.Len() {
		pixels, err := fresh.Image(i, &buffer)
		if err != nil {
			t.Fatal(err)
		}
		v, err := detector.Score(t.Context(), pixels)
		if err != nil {
			t.Fatal(err)
		}
		scores = append(scores, v)
	}
	slices.Sort(scores)
	for i, v := range scores {
		if math.Abs(v-d.Scores[i]) > 0.15*max(1, v) {
			t.Errorf("score %d is %v, the calibration has %v", i, v, d.Scores[i])
		}
	}
}

func sameTensors(a, b models.StateDict) bool {
	return slices.EqualFunc(a, b, func(a, b models.Tensor) bool {
		return a.Name == b.Name && slices.Equal(a.Shape, b.Shape) && slices.Equal(a.Data, b.Data)
	})
}
