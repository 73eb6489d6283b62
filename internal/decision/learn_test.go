package decision

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

// fewSteps is a number of training steps of heads that takes little time.
const fewSteps = 5

// readTiles returns the files as a data set of 32×32 pixels.
func readTiles(t *testing.T, files map[string][]byte) *dataset.Dataset {
	t.Helper()
	data := testkit.Zip(t, files)
	src, err := dataset.OpenZip(bytes.NewReader(data), int64(len(data)), dataset.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	d, err := dataset.Load(t.Context(), src, dataset.Options{Size: models.Square(32), Limits: dataset.DefaultLimits(), Workers: workers.Pool{Threads: 2}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// learnFrom learns from the data set. Heads are trained for steps steps; the default
// false alarm rate is 0.05.
func learnFrom(t *testing.T, data *dataset.Dataset, steps, threads int, o Options) Learned {
	t.Helper()
	o.HeadSteps, o.Workers = steps, workers.Pool{Threads: threads}
	if o.FalseAlarmRate == 0 {
		o.FalseAlarmRate = 0.05
	}
	data.Warnings = nil
	learned, err := Learn(t.Context(), orttest.Open(t), data, o)
	if err != nil {
		t.Fatal(err)
	}
	return learned
}

// modelOf returns a model of untrained weights with the learned decision.
func modelOf(t *testing.T, learned Learned, side int) *models.Model {
	t.Helper()
	arch := models.DefaultArchitecture()
	m := &models.Model{Architecture: arch, Weights: network.InitialWeights(arch.Parameters(), streams.New(1, streams.Weights)), ImageSize: side, Reference: learned.Tensors,
		Metadata: models.Metadata{Decision: learned.Decision, ImageSize: side, Threshold: 1}}
	if learned.Tiles != nil {
		m.Metadata.Preprocessing = models.StandardPreprocessing()
		m.Metadata.Preprocessing.Tiles = learned.Tiles
	}
	if err := m.CheckReference(); err != nil {
		t.Fatal(err)
	}
	return m
}

func sameTensors(a, b models.StateDict) bool {
	return slices.EqualFunc(a, b, func(a, b models.Tensor) bool {
		return a.Name == b.Name && slices.Equal(a.Shape, b.Shape) && slices.Equal(a.Data, b.Data)
	})
}

func TestLearn_IsIdenticalOnAnyNumberOfThreads(t *testing.T) {
	data := readTiles(t, testkit.Tiles(t, 17)) // an odd number
	one := learnFrom(t, data, fewSteps, 1, Options{Seed: 3})
	two := learnFrom(t, data, fewSteps, 2, Options{Seed: 3})
	if one.HeadSteps != fewSteps || !models.HasHeads(one.Tensors) {
		t.Fatalf("%d steps, warnings %q", one.HeadSteps, data.Warnings)
	}
	if !sameTensors(one.Tensors, two.Tensors) || !reflect.DeepEqual(one.Decision, two.Decision) || !reflect.DeepEqual(one.Detectability, two.Detectability) {
		t.Error("one thread and two produce different models")
	}
}

func TestLearn_DependsOnTheNumberOfImages(t *testing.T) {
	for _, c := range []struct {
		images         int
		decides, heads bool
		warns          string
	}{
		{7, false, false, "7 images are too few"},
		{8, true, false, "false alarm rate of 0.111 at best"},
		{15, true, false, "false alarm rate of 0.062 at best"},
		{19, true, true, ""},
	} {
		data := readTiles(t, testkit.Tiles(t, c.images))
		learned := learnFrom(t, data, fewSteps, 2, Options{})
		warnings := strings.Join(data.Warnings, "\n")
		if (learned.Decision != nil) != c.decides || models.HasPatches(learned.Tensors) != c.decides || models.HasHeads(learned.Tensors) != c.heads ||
			(learned.HeadSteps > 0) != c.heads || !strings.Contains(warnings, c.warns) || (c.warns == "") != (warnings == "") {
			t.Errorf("%d images: decision %+v, %d steps of heads, warnings %q", c.images, learned.Decision, learned.HeadSteps, warnings)
		}
		if d := learned.Decision; d != nil && (d.Measure != models.MeasurePatchMahalanobis || d.CalibrationImages != c.images || len(d.Scores) != c.images ||
			*d.Backbone != *models.EmbeddedBackbone()) {
			t.Errorf("%d images: %+v", c.images, d)
		}
		if learned.Tensors != nil && models.BankSize(learned.Tensors) != c.images {
			t.Errorf("%d images: a bank of %d", c.images, models.BankSize(learned.Tensors))
		}
	}
}

func TestLearn_AcceptsIdenticalImages(t *testing.T) {
	two := testkit.Tiles(t, 2)
	names := slices.Sorted(maps.Keys(two))
	tile, other := two[names[0]], two[names[1]]
	for _, n := range []int{18} {
		files := map[string][]byte{}
		for i := range n {
			files[fmt.Sprintf("%02d.jpg", i)] = tile
		}
		data := readTiles(t, files)
		learned := learnFrom(t, data, fewSteps, 2, Options{})
		m := modelOf(t, learned, data.Layout.W)
		for _, open := range []func(*ort.Engine, *models.Model, int) (*inference.Detector, error){inference.NewDetector, inference.NewExportDetector} {
			d, err := open(orttest.Open(t), m, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if v, err := d.Detect(t.Context(), tile, nil, imagefile.DefaultLimits()); err != nil || v.IsAnomaly {
				t.Errorf("%d images: %+v, %v", n, v, err)
			}
			if v, err := d.Detect(t.Context(), other, nil, imagefile.DefaultLimits()); err != nil || !v.IsAnomaly {
				t.Errorf("%d images, a different one: %+v, %v", n, v, err)
			}
		}
	}
}

// The limits are shares of the time left after reading the images. With too little
// time, heads are left out first and images next.
func TestLearn_EndsBeforeTheDeadline(t *testing.T) {
	data := readTiles(t, testkit.Tiles(t, 20))
	for _, c := range []struct {
		name   string
		steps  int
		passed time.Duration
		images int
		heads  bool
		warns  string
	}{
		{"most of it passed", fewSteps, 50 * time.Minute, 20, true, ""},
		{"all of it passed", fewSteps, 2 * time.Hour, calibration.MinImages, false, "at best"},
		{"seconds are left", 100_000, time.Hour - 4*time.Second, 20, false, "no time for 100 steps"},
	} {
		learned := learnFrom(t, data, c.steps, 2, Options{Deadline: time.Now().Add(time.Hour - c.passed)})
		warnings := strings.Join(data.Warnings, "\n")
		if learned.Decision.CalibrationImages != c.images || !strings.Contains(warnings, c.warns) || c.heads && learned.HeadSteps == 0 {
			t.Errorf("%s: %d images, %d steps of heads, warnings %q", c.name, learned.Decision.CalibrationImages, learned.HeadSteps, warnings)
		}
		if learned.Detectability != nil {
			t.Errorf("%s: detectability was measured", c.name)
		}
	}
}

func TestLearn_LeavesHeadsOutWhenStopped(t *testing.T) {
	data := readTiles(t, testkit.Tiles(t, 19))
	stop := make(chan struct{})
	close(stop)
	learned := learnFrom(t, data, fewSteps, 2, Options{Stop: stop})
	if learned.Decision == nil || learned.Decision.CalibrationImages != 19 || models.HasHeads(learned.Tensors) || learned.Detectability != nil ||
		!strings.Contains(strings.Join(data.Warnings, "\n"), "it was stopped before 5 steps") {
		t.Errorf("%+v, %d steps, warnings %q", learned.Decision, learned.HeadSteps, data.Warnings)
	}
}

// The threshold is a quantile of cross-fitted scores. New images like these have similar
// scores, and the training images themselves have lower ones.
func TestLearn_ThresholdHoldsForNewImages(t *testing.T) {
	const rate = 0.1
	files := testkit.Tiles(t, 60)
	training, others := map[string][]byte{}, map[string][]byte{}
	for i, name := range slices.Sorted(maps.Keys(files)) {
		if i%2 == 0 {
			training[name] = files[name]
		} else {
			others[name] = files[name]
		}
	}
	data := readTiles(t, training)
	// Heads of some steps overfit to their images.
	learned := learnFrom(t, data, 20, 2, Options{FalseAlarmRate: rate})
	m := modelOf(t, learned, data.Layout.W)
	d, err := inference.NewDetector(orttest.Open(t), m, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	scores := func(data *dataset.Dataset) (mean, above float64) {
		var buffer []byte
		for i := range data.Len() {
			pixels, err := data.Image(i, &buffer)
			if err != nil {
				t.Fatal(err)
			}
			s, err := d.Score(t.Context(), pixels)
			if err != nil {
				t.Fatal(err)
			}
			mean += s / float64(data.Len())
			if s > learned.Decision.Threshold {
				above += 1 / float64(data.Len())
			}
		}
		return mean, above
	}
	crossFitted, _ := calibration.MeanDeviation(learned.Decision.Scores)
	own, _ := scores(data)
	other, alarms := scores(readTiles(t, others))
	if alarms > 3*rate {
		t.Errorf("share of false alarms on new images %.2f, expected about %v", alarms, rate)
	}
	if own > 0.8*crossFitted {
		t.Errorf("mean score of training images %.3f, cross-fitted %.3f: not cross-fitted", own, crossFitted)
	}
	if math.Abs(other-crossFitted) > 0.35*crossFitted {
		t.Errorf("mean score of new images %.3f, cross-fitted %.3f", other, crossFitted)
	}
}

// The mean member scores of later images are lower than the cross-fitted ones of the
// images by the excess.
func TestExcess_IsWhatLaterImagesScoreLess(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 0))
	side, first := 64, firstTap()
	maps := extractor.MapsOf(models.Square(side))
	image := func() [][]float32 {
		out := make([][]float32, len(maps))
		for i := first; i < len(maps); i++ {
			out[i] = make([]float32, maps[i].Floats())
			for k := range out[i] {
				out[i][k] = float32(random.NormFloat64())
			}
		}
		return out
	}
	const n, later = 20, 200
	x := &reference{order: make([]int, n), maps: maps}
	for range n {
		x.features = append(x.features, image())
	}
	x.folds = x.foldCount()
	o := Options{Workers: workers.Pool{Threads: 2}}
	s, err := x.describe(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	members, err := x.crossFit(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	excess, err := x.excess(t.Context(), members, o)
	if err != nil {
		t.Fatal(err)
	}
	want, standardError := make([]float64, len(excess)), make([]float64, len(excess))
	for i := range want {
		column := make([]float64, n)
		for k, row := range members {
			column[k] = row[i]
		}
		mean, deviation := calibration.MeanDeviation(column)
		want[i], standardError[i] = mean, deviation/math.Sqrt(n)
	}
	for range later {
		for i, v := range s.members(x.folds, image(), nil) {
			want[i] -= v / later
		}
	}
	for i := range want {
		// The extrapolation is rough where there is nothing but noise in the features.
		if tolerance := 0.75*math.Abs(want[i]) + 3*standardError[i]; math.Abs(excess[i]-want[i]) > tolerance || i < 2 && excess[i] < want[i]/2 {
			t.Errorf("member %d: excess %.4f, later images score %.4f less", i, excess[i], want[i])
		}
	}
	c := &calibration.Calibration{Offsets: make([]float32, len(excess)+1)}
	offsets := lowered(c, excess).Offsets
	for i, v := range withHead(excess, 0) {
		if offsets[i] != -float32(v) {
			t.Errorf("offset %d is lowered by %v, expected %v", i, -offsets[i], v)
		}
	}
	x.order = make([]int, fewImages)
	if excess, err := x.excess(t.Context(), nil, o); excess != nil || err != nil {
		t.Errorf("%d images: excess %v, %v", fewImages, excess, err)
	}
}

// The model computes the same member scores as the training, and joins them to its anomaly
// score.
func TestMembers_MatchTrainingAndScore(t *testing.T) {
	engine := orttest.Open(t)
	data := readTiles(t, testkit.Tiles(t, 19))
	learned := learnFrom(t, data, fewSteps, 2, Options{})
	m := modelOf(t, learned, data.Layout.W)
	d, err := inference.NewDetector(engine, m, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	join := m.Reference[len(m.Reference)-3:]
	c := calibration.Calibration{Offsets: join[0].Data, Slopes: join[1].Data, Weights: join[2].Data}

	// The statistics fitted to all images.
	e, err := extractor.New(engine, data.Layout)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	x := &reference{data: data, order: drawImages(data, 0), maps: e.Maps()}
	o := Options{HeadSteps: fewSteps, Workers: workers.Pool{Threads: 2}}
	if err := x.extract(t.Context(), e, o, time.Time{}); err != nil {
		t.Fatal(err)
	}
	s, err := x.describe(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var buffer []byte
	for k := range 5 {
		pixels, err := x.image(k, &buffer)
		if err != nil {
			t.Fatal(err)
		}
		members, anomaly, mse, err := d.Members(t.Context(), pixels)
		if err != nil {
			t.Fatal(err)
		}
		if score, err := d.Score(t.Context(), pixels); err != nil || score != anomaly {
			t.Errorf("image %d: score %v, with members %v; error %v", k, score, anomaly, err)
		}
		if plain, err := d.MSE(t.Context(), pixels); err != nil || plain != mse {
			t.Errorf("image %d: mean squared error %v, with members %v; error %v", k, plain, mse, err)
		}
		if joined := c.Join(members); math.Abs(joined-anomaly) > 1e-5*max(1, anomaly) {
			t.Errorf("image %d: the joined members are %v, the score %v", k, joined, anomaly)
		}
		want := s.members(x.folds, x.features[k], nil)
		want = withHead(want, members[models.PatchMembers(false)])
		for i, v := range members {
			// The nearest neighbour of a training image is the image itself. The rest is
			// rounding, below the offset of the logarithm.
			if math.Abs(v-want[i]) > 2e-4*max(1, math.Abs(want[i])) {
				t.Errorf("image %d, member %d of %d: %v, the training has %v", k, i, len(members), v, want[i])
			}
		}
	}
	if _, _, _, err := d.Members(t.Context(), make([]byte, 5)); err == nil {
		t.Error("an image of a different size is accepted")
	}
}
