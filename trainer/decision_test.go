package trainer

import (
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
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// fewSteps is a level whose heads are trained at once, and mean nothing.
var fewSteps = Level{Number: 2, Epochs: 1, BatchSize: 16, LearningRate: 1e-3, HeadSteps: 5}

// readTiles are the tiles of those files, of 32 pixels.
func readTiles(t *testing.T, files map[string][]byte) *Dataset {
	t.Helper()
	o, _, err := Options{ImageSize: 32}.Settle()
	if err != nil {
		t.Fatal(err)
	}
	data, err := Load(t.Context(), zipSource(t, files), 2, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { data.Close() })
	return data
}

// learnFrom is learn, on so many threads.
func learnFrom(t *testing.T, data *Dataset, level Level, threads int, o Options, began time.Time) learnt {
	t.Helper()
	o.ImageSize = data.Side
	o, _, err := o.Settle()
	if err != nil {
		t.Fatal(err)
	}
	o.Threads = threads
	data.Warnings = nil
	known, err := learn(t.Context(), orttest.Open(t), data, stream(o.Seed, streamNormals).Perm(data.Len()), level, o, began)
	if err != nil {
		t.Fatal(err)
	}
	return known
}

// modelOf is a model of untrained weights that decides by what was learnt.
func modelOf(t *testing.T, known learnt, side int) *models.Model {
	t.Helper()
	arch := models.DefaultArchitecture()
	m := &models.Model{Architecture: arch, Weights: InitialWeights(arch, 1), ImageSize: side, Normality: known.tensors,
		Metadata: models.Metadata{Decision: known.decision, ImageSize: side, Threshold: 1}}
	if err := m.CheckNormality(); err != nil {
		t.Fatal(err)
	}
	return m
}

func sameTensors(a, b models.StateDict) bool {
	return slices.EqualFunc(a, b, func(a, b models.Tensor) bool {
		return a.Name == b.Name && slices.Equal(a.Shape, b.Shape) && slices.Equal(a.Data, b.Data)
	})
}

func TestSameSeedLearnsTheSameOnAnyNumberOfThreads(t *testing.T) {
	data := readTiles(t, tileData(t, 17)) // of which no thread has the same number
	one := learnFrom(t, data, fewSteps, 1, Options{Seed: 3}, time.Now())
	two := learnFrom(t, data, fewSteps, 2, Options{Seed: 3}, time.Now())
	if one.headSteps != fewSteps.HeadSteps || !models.HasHeads(one.tensors) {
		t.Fatalf("%d steps, warnings %q", one.headSteps, data.Warnings)
	}
	if !sameTensors(one.tensors, two.tensors) || !reflect.DeepEqual(one.decision, two.decision) || !reflect.DeepEqual(one.detectability, two.detectability) {
		t.Error("one thread and two give other models")
	}
}

func TestWhatIsLearntDependsOnHowManyImagesThereAre(t *testing.T) {
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
		data := readTiles(t, tileData(t, c.images))
		known := learnFrom(t, data, fewSteps, 2, Options{}, time.Now())
		said := strings.Join(data.Warnings, "\n")
		if (known.decision != nil) != c.decides || models.HasPatches(known.tensors) != c.decides || models.HasHeads(known.tensors) != c.heads ||
			(known.headSteps > 0) != c.heads || !strings.Contains(said, c.warns) || (c.warns == "") != (said == "") {
			t.Errorf("%d images: decision %+v, %d steps of heads, warnings %q", c.images, known.decision, known.headSteps, said)
		}
		if d := known.decision; d != nil && (d.Measure != models.MeasurePatchMahalanobis || d.Normals != c.images || len(d.Scores) != c.images ||
			*d.Backbone != *models.EmbeddedBackbone()) {
			t.Errorf("%d images: %+v", c.images, d)
		}
		if known.tensors != nil && models.BankSize(known.tensors) != c.images {
			t.Errorf("%d images: a bank of %d", c.images, models.BankSize(known.tensors))
		}
	}
}

func TestImagesThatAreAllAlikeAreNormal(t *testing.T) {
	two := tileData(t, 2)
	names := slices.Sorted(maps.Keys(two))
	tile, other := two[names[0]], two[names[1]]
	for _, n := range []int{18} {
		files := map[string][]byte{}
		for i := range n {
			files[fmt.Sprintf("%02d.jpg", i)] = tile
		}
		data := readTiles(t, files)
		known := learnFrom(t, data, fewSteps, 2, Options{}, time.Now())
		m := modelOf(t, known, data.Side)
		for _, open := range []func(*ort.Engine, *models.Model, int) (*inference.Detector, error){inference.NewDetector, inference.NewExportDetector} {
			d, err := open(orttest.Open(t), m, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if v, err := d.Detect(t.Context(), tile, nil, inference.DefaultImageLimits()); err != nil || v.IsAnomaly {
				t.Errorf("%d images: %+v, %v", n, v, err)
			}
			if v, err := d.Detect(t.Context(), other, nil, inference.DefaultImageLimits()); err != nil || !v.IsAnomaly {
				t.Errorf("%d images, another one: %+v, %v", n, v, err)
			}
		}
	}
}

// The time that reading the images took is not taken from that of learning from
// them, as long as there is some. Heads are left out before images are.
func TestTimeBoundsWhatIsLearnt(t *testing.T) {
	data := readTiles(t, tileData(t, 20))
	long := Level{Number: 5, HeadSteps: 100000}
	for _, c := range []struct {
		name    string
		level   Level
		passed  time.Duration
		normals int
		heads   bool
		warns   string
	}{
		{"most of it passed", fewSteps, 50 * time.Minute, 20, true, ""},
		{"all of it passed", fewSteps, 2 * time.Hour, calibration.MinImages, false, "at best"},
		{"seconds are left", long, time.Hour - 4*time.Second, 20, false, "no time for 100 steps"},
	} {
		known := learnFrom(t, data, c.level, 2, Options{MaxTime: time.Hour}, time.Now().Add(-c.passed))
		said := strings.Join(data.Warnings, "\n")
		if known.decision.Normals != c.normals || !strings.Contains(said, c.warns) || c.heads && known.headSteps == 0 {
			t.Errorf("%s: %d images, %d steps of heads, warnings %q", c.name, known.decision.Normals, known.headSteps, said)
		}
		if known.detectability != nil {
			t.Errorf("%s: it took time to tell what would be found", c.name)
		}
	}
}

func TestStoppingLeavesHeadsOut(t *testing.T) {
	data := readTiles(t, tileData(t, 19))
	stop := make(chan struct{})
	close(stop)
	known := learnFrom(t, data, fewSteps, 2, Options{Stop: stop}, time.Now())
	if known.decision == nil || known.decision.Normals != 19 || models.HasHeads(known.tensors) || known.detectability != nil ||
		!strings.Contains(strings.Join(data.Warnings, "\n"), "it was stopped before 5 steps") {
		t.Errorf("%+v, %d steps, warnings %q", known.decision, known.headSteps, data.Warnings)
	}
}

// The scores that the threshold is drawn from are of images that were not learnt from:
// so others like them have such scores, too, and those that were learnt from have lower
// ones.
func TestThresholdIsThatOfImagesNotLearntFrom(t *testing.T) {
	const rate = 0.1
	files := tileData(t, 60)
	known, others := map[string][]byte{}, map[string][]byte{}
	for i, name := range slices.Sorted(maps.Keys(files)) {
		if i%2 == 0 {
			known[name] = files[name]
		} else {
			others[name] = files[name]
		}
	}
	data := readTiles(t, known)
	// Heads of some steps take sides with the images that they saw.
	level := fewSteps
	level.HeadSteps = 20
	what := learnFrom(t, data, level, 2, Options{FalseAlarmRate: rate}, time.Now())
	m := modelOf(t, what, data.Side)
	d, err := inference.NewDetector(orttest.Open(t), m, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	scores := func(data *Dataset) (mean, above float64) {
		var buffer []byte
		for i := range data.Len() {
			pixels, err := data.Image(i, &buffer)
			if err != nil {
				t.Fatal(err)
			}
			s, err := d.Measure(t.Context(), pixels)
			if err != nil {
				t.Fatal(err)
			}
			mean += s / float64(data.Len())
			if s > what.decision.Threshold {
				above += 1 / float64(data.Len())
			}
		}
		return mean, above
	}
	promised, _ := calibration.MeanDeviation(what.decision.Scores)
	own, _ := scores(data)
	other, alarms := scores(readTiles(t, others))
	if alarms > 3*rate {
		t.Errorf("%.2f false alarms on images like those, %v are promised", alarms, rate)
	}
	if own > 0.8*promised {
		t.Errorf("the mean score of images that were learnt from is %.3f, of the threshold's %.3f: they were learnt from, too", own, promised)
	}
	if math.Abs(other-promised) > 0.35*promised {
		t.Errorf("the mean score of other images is %.3f, of the threshold's %.3f", other, promised)
	}
}

// A model's members are what the training had for them, and joined they are its score.
func TestMembersAreTheTrainingsAndGiveTheScore(t *testing.T) {
	engine := orttest.Open(t)
	data := readTiles(t, tileData(t, 19))
	known := learnFrom(t, data, fewSteps, 2, Options{}, time.Now())
	m := modelOf(t, known, data.Side)
	d, err := inference.NewDetector(engine, m, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	join := m.Normality[len(m.Normality)-3:]
	c := calibration.Calibration{Offsets: join[0].Data, Slopes: join[1].Data, Weights: join[2].Data}

	// What the training knows without a fold, of all images.
	e, err := extractor.New(engine, data.Side)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	x := &normals{data: data, order: stream(0, streamNormals).Perm(data.Len()), maps: e.Maps()}
	o := Options{Threads: 2}
	if err := x.extract(t.Context(), e, true, o, time.Time{}); err != nil {
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
		members, figure, mse, err := d.Members(t.Context(), pixels)
		if err != nil {
			t.Fatal(err)
		}
		if score, err := d.Measure(t.Context(), pixels); err != nil || score != figure {
			t.Errorf("image %d: the score is %v, with the members %v; %v", k, score, figure, err)
		}
		if plain, err := d.MSE(t.Context(), pixels); err != nil || plain != mse {
			t.Errorf("image %d: the error is %v, with the members %v; %v", k, plain, mse, err)
		}
		if joined := c.Join(members); math.Abs(joined-figure) > 1e-5*max(1, figure) {
			t.Errorf("image %d: the members give %v, the score is %v", k, joined, figure)
		}
		want := s.members(x.folds, x.features[k])
		want = withHead(want, members[models.LocalMembers(false)])
		for i, v := range members {
			// The nearest neighbour of an image that was learnt from is itself: what
			// is left is rounding, below the offset of the logarithm.
			if math.Abs(v-want[i]) > 2e-4*max(1, math.Abs(want[i])) {
				t.Errorf("image %d, member %d of %d: %v, the training has %v", k, i, len(members), v, want[i])
			}
		}
	}
	if _, _, _, err := d.Members(t.Context(), make([]byte, 5)); err == nil {
		t.Error("an image of another size is measured")
	}
}

// Calibrated anew a model has other offsets, slopes and thresholds, and all else is the
// same.
func TestCalibrationStandardizesTheMembersAnew(t *testing.T) {
	data := readTiles(t, tileData(t, 19))
	m := modelOf(t, learnFrom(t, data, fewSteps, 2, Options{}, time.Now()), data.Side)
	m.Metadata.Detectability = &models.Detectability{}
	given := slices.Clone(m.Normality)
	files := tileData(t, 60)
	for name := range tileData(t, 30) {
		delete(files, name)
	}
	fresh := readTiles(t, files)
	again, report, err := Recalibrate(t.Context(), orttest.Open(t), m, fresh, Options{FalseAlarmRate: 0.1})
	if err != nil {
		t.Fatal(err)
	}
	if !sameTensors(m.Normality, given) || m.Metadata.Detectability == nil {
		t.Error("the model that was given is changed")
	}
	if err := again.CheckNormality(); err != nil {
		t.Fatal(err)
	}
	last := len(m.Normality) - 3
	if !sameTensors(again.Normality[:last], m.Normality[:last]) {
		t.Error("what was learnt of patches is changed")
	}
	for i, changed := range []bool{true, true, false} {
		if before, after := m.Normality[last+i], again.Normality[last+i]; slices.Equal(before.Data, after.Data) == changed {
			t.Errorf("%s is %v, was %v", after.Name, after.Data, before.Data)
		}
	}
	d := again.Metadata.Decision
	if d.Backbone == nil || *d.Backbone != *models.EmbeddedBackbone() || d.Normals != 30 || d.Threshold != report.After || again.Metadata.Detectability != nil {
		t.Errorf("%+v", d)
	}
	if err := again.Metadata.Validate(); err != nil {
		t.Error(err)
	}
	// The model's scores of these images are by others' scale than its own, and about
	// the same.
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
		v, err := detector.Measure(t.Context(), pixels)
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

func TestStandardizingIsFoldedIntoAHead(t *testing.T) {
	const side = 32
	maps := extractor.MapsOf(side)
	r := rand.New(rand.NewPCG(1, 1))
	h := &headTraining{normals: &normals{maps: maps}}
	var raw, standardized [][]float32
	for _, m := range maps {
		area := m.Side * m.Side
		a, b := make([]float32, m.Floats()), make([]float32, m.Floats())
		for c := range m.Channels {
			mean, precision := float32(r.NormFloat64()), float32(0.2+2*r.Float64())
			h.mean, h.precision = append(h.mean, mean), append(h.precision, precision)
			for i := c * area; i < (c+1)*area; i++ {
				b[i] = float32(r.NormFloat64())
				a[i] = b[i]/precision + mean
			}
		}
		raw, standardized = append(raw, a), append(standardized, b)
	}
	weights := initial(models.HeadParameters(0), r)
	engine := orttest.Open(t)
	judge := func(sd models.StateDict) *headJudge {
		j, err := (&heads{engine: engine, maps: maps, imageSide: side, tensors: [models.HeadCount]models.StateDict{sd, sd}}).judge()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(j.close)
		return j
	}
	logits := func(j *headJudge, features [][]float32) []float32 {
		if _, err := j.peak(t.Context(), 0, features); err != nil {
			t.Fatal(err)
		}
		return slices.Clone(j.logits.Data())
	}
	want := logits(judge(weights), standardized)
	got := logits(judge(h.folded(weights)), raw)
	for i, w := range want {
		if math.Abs(float64(got[i]-w)) > 1e-4 {
			t.Fatalf("logit %d is %v, of standardized features %v", i, got[i], w)
		}
	}
	if slices.Max(want) == slices.Min(want) {
		t.Error("the logits are all the same")
	}
}

func TestTargetsAreAtTheirPatches(t *testing.T) {
	for _, side := range []int{16, 48, 144, 256} {
		in := models.BackboneInputOf(side)
		for _, m := range extractor.MapsOf(side) {
			stride := in.Side / m.Side
			for _, at := range [][2]int{{0, 0}, {side / 3, side / 2}, {side - 1, side - 1}, {5, side - 2}} {
				mask := make([]float32, side*side)
				mask[at[1]*side+at[0]] = 0.75
				target := highestOf(mask, side, m)
				marked := 0
				for p, v := range target {
					if v == 0 {
						continue
					}
					marked++
					// The middle of the pixel, as the backbone sees it, lies in the patch.
					for axis, patch := range []int{p % m.Side, p / m.Side} {
						middle := (float64(at[axis])+0.5)*float64(in.Times) + float64(in.Border)
						if v != 0.75 || middle < float64(patch*stride) || middle > float64((patch+1)*stride) {
							t.Errorf("%d px, block %d: pixel %v is at patch %d of value %v", side, m.Block, at, p, v)
						}
					}
				}
				if marked != 1 {
					t.Errorf("%d px, block %d: pixel %v marks %d patches", side, m.Block, at, marked)
				}
			}
		}
	}
}
