package trainer

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

func TestConformalThreshold(t *testing.T) {
	scores := func(n int) []float64 {
		out := make([]float64, n)
		for i := range out {
			out[(i*7)%n] = float64(i + 1) // in some order
		}
		return out
	}
	for _, c := range []struct {
		n         int
		rate      float64
		threshold float64
		supported float64
	}{
		{99, 0.05, 95, 0.01},
		{99, 0.01, 99, 0.01},
		{99, 0.001, 99, 0.01}, // too few: the highest there is
		{19, 0.05, 19, 0.05},
		{10, 0.05, 10, 1.0 / 11},
		{100, 0.5, 51, 1.0 / 101},
		{8, 0.999, 1, 1.0 / 9},
	} {
		d := conformal(scores(c.n), c.rate)
		if d.Threshold != c.threshold || math.Abs(d.SupportedRate-c.supported) > 1e-12 || d.Normals != c.n || d.FalseAlarmRate != c.rate {
			t.Errorf("%d images, rate %v: %+v, expected threshold %v", c.n, c.rate, d, c.threshold)
		}
	}
}

// Of scores of any distribution, no more than the promised share lies above the
// threshold, on average over many drawings.
func TestConformalThresholdKeepsItsPromise(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{20, 50, 200} {
		alarms, all := 0, 0
		for range 400 {
			draw := func() float64 { return math.Exp(2 * r.NormFloat64()) }
			scores := make([]float64, n)
			for i := range scores {
				scores[i] = draw()
			}
			d := conformal(scores, 0.05)
			for range 50 {
				all++
				if draw() > d.Threshold {
					alarms++
				}
			}
		}
		if rate := float64(alarms) / float64(all); rate > 0.055 || rate < 0.03 {
			t.Errorf("%d normals: %.3f false alarms, 0.05 were promised", n, rate)
		}
	}
}

// textures writes images of a grainy texture, of which those from defects on have
// a spot.
func textures(t *testing.T, n, defects int) []string {
	t.Helper()
	const side = 64
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(5, 6))
	var files []string
	for i := range n {
		img := image.NewRGBA(image.Rect(0, 0, side, side))
		base := 110 + r.Float64()*40
		cx, cy := 8+r.IntN(side-16), 8+r.IntN(side-16)
		for y := range side {
			for x := range side {
				v := base + 12*math.Sin(float64(x)*0.8) + 6*r.NormFloat64()
				if i >= defects && (x-cx)*(x-cx)+(y-cy)*(y-cy) < 9 {
					v -= 45
				}
				img.Set(x, y, color.RGBA{uint8(v), uint8(0.9 * v), uint8(0.8 * v), 255})
			}
		}
		var b bytes.Buffer
		if err := png.Encode(&b, img); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, fmt.Sprintf("%03d.png", i))
		if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, name)
	}
	return files
}

// loaded are textures as a training with these options has them.
func loaded(t *testing.T, n int, o Options) (*Dataset, Options, Level) {
	t.Helper()
	textures := textures(t, n, n)
	src, err := OpenFolder(filepath.Dir(textures[0]), DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	o, level, err := o.Settle()
	if err != nil {
		t.Fatal(err)
	}
	o.Threads = 1
	data, err := Load(t.Context(), src, 1, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { data.Close() })
	return data, o, level
}

// The time that reading the images took is not taken from that of learning from
// them, as long as there is some.
func TestSlowReadingLeavesAllImagesToLearnFrom(t *testing.T) {
	const n = 20
	data, o, level := loaded(t, n, Options{Level: 1, ImageSize: 32, MaxTime: time.Hour})
	order := rand.New(rand.NewPCG(1, 2)).Perm(n)
	for passed, want := range map[time.Duration]int{0: n, 50 * time.Minute: n, 2 * time.Hour: minNormals} {
		_, d, _, err := normality(t.Context(), orttest.Open(t), data, order, level, o, time.Now().Add(-passed))
		if err != nil {
			t.Fatal(err)
		}
		if d.Normals != want {
			t.Errorf("after %v of an hour: %d images, expected %d", passed, d.Normals, want)
		}
	}
}

func TestImagesThatAreAllAlikeAreNormal(t *testing.T) {
	file := textures(t, 1, 1)[0]
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for i := range 10 {
		files[fmt.Sprintf("%d.png", i)] = image
	}
	e := orttest.Open(t)
	m, err := Train(t.Context(), e, zipSource(t, files), brief(Options{Level: 1, ImageSize: 32}))
	if err != nil {
		t.Fatal(err)
	}
	d, err := inference.NewDetector(e, m, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	v, err := d.Detect(t.Context(), image, nil, inference.DefaultImageLimits())
	if err != nil || v.IsAnomaly {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestSpotsAreFoundAndPlaced(t *testing.T) {
	const normal, test = 30, 10
	files := textures(t, normal+2*test, normal+test)
	train := t.TempDir()
	for _, f := range files[:normal] {
		if err := os.Rename(f, filepath.Join(train, filepath.Base(f))); err != nil {
			t.Fatal(err)
		}
	}
	src, err := OpenFolder(train, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	e := orttest.Open(t)
	m, err := Train(t.Context(), e, src, Options{Level: 1, ImageSize: 64, FalseAlarmRate: 0.1})
	if err != nil {
		t.Fatal(err)
	}
	if d := m.Metadata.Decision; d == nil || d.Measure != models.MeasureBandMahalanobis || d.Normals != normal || d.FalseAlarmRate != 0.1 {
		t.Fatalf("%+v", m.Metadata.Decision)
	}
	if err := m.CheckNormality(); err != nil {
		t.Fatal(err)
	}
	detector, err := inference.NewDetector(e, m, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer detector.Close()
	alarms, hits := 0, 0
	for i, f := range files[normal:] {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		x, err := detector.Explain(t.Context(), data, nil, inference.DefaultImageLimits())
		if err != nil {
			t.Fatal(err)
		}
		if x.IsAnomaly && i < test {
			alarms++
		}
		if x.IsAnomaly && i >= test {
			hits++
		}
	}
	if alarms > 4 || hits < 9 {
		t.Errorf("%d of %d normal images and %d of %d with a spot are called anomalous", alarms, test, hits, test)
	}
}

func TestFewImagesAreJudgedByTheirPlainError(t *testing.T) {
	train := t.TempDir()
	for i, f := range textures(t, minNormals-1, minNormals) {
		if err := os.Rename(f, filepath.Join(train, fmt.Sprint(i, ".png"))); err != nil {
			t.Fatal(err)
		}
	}
	src, err := OpenFolder(train, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	m, err := Train(t.Context(), orttest.Open(t), src, Options{Level: 1, ImageSize: 32})
	if err != nil {
		t.Fatal(err)
	}
	if m.Metadata.Decision != nil || m.Normality != nil || !strings.Contains(fmt.Sprint(m.Metadata.Training.Warnings), "too few") {
		t.Errorf("%+v, warnings %v", m.Metadata.Decision, m.Metadata.Training.Warnings)
	}
}
