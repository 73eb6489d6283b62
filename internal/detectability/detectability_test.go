package detectability

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

// normalImages returns n images with a gradient and weak noise.
func normalImages(n, side int) (Images, [][]byte) {
	r := rand.New(rand.NewPCG(1, 2))
	all := make([][]byte, n)
	for i := range all {
		for y := range side {
			for x := range side {
				v := byte(80 + 60*(x+y)/side + r.IntN(6) + i%3)
				all[i] = append(all[i], v, v, v)
			}
		}
	}
	return Images{n, imagefile.Layout{Size: models.Square(side)}, func(i int, _ *[]byte) ([]byte, error) { return all[i], nil }}, all
}

// deviation returns a ScoreFunc that computes the mean absolute deviation from the
// normal image, in grey levels.
func deviation(all [][]byte) ScoreFunc {
	return func(_ context.Context, image int, pixels []byte) (float64, error) {
		sum := 0.0
		for i, v := range pixels {
			sum += math.Abs(float64(v) - float64(all[image][i]))
		}
		return sum / float64(len(pixels)), nil
	}
}

func random() *rand.Rand { return rand.New(rand.NewPCG(7, 7)) }

func TestMeasure_FindsLargeStrongAnomaliesOnly(t *testing.T) {
	images, all := normalImages(20, 128)
	d, err := Measure(t.Context(), images, deviation(all), 0.1, random(), Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	if d.ImagesPerCell != DefaultPerCell || d.NormalImages != 20 || d.FalseAlarms != 0 || d.Threshold != 0.1 ||
		!slices.Equal(d.Diameters, []float64{2, 4, 8, 16, 32}) || !slices.Equal(d.Contrasts, contrasts) {
		t.Errorf("%+v", d)
	}
	// The mean deviation is 0.6 for 128 levels on the smallest scratch of 32 pixels, and
	// 0.002 for 8 levels on a square of 2 pixels.
	if strongest := d.Found[len(contrasts)-1]; strongest[4] != 1 {
		t.Errorf("the shares of the strongest contrast are %v", strongest)
	}
	if faintest := d.Found[0]; faintest[0] != 0 {
		t.Errorf("the shares of the faintest contrast are %v", faintest)
	}
	for _, row := range d.Found {
		if !slices.IsSorted(row) {
			t.Errorf("larger anomalies are detected less often: %v", row)
		}
	}
	if d.CutPaste[0] > d.CutPaste[4] || d.CutPaste[4] == 0 {
		t.Errorf("the shares of pasted texture are %v", d.CutPaste)
	}
}

func TestMeasure_WithConstantScoreFindsNoneOrAll(t *testing.T) {
	images, _ := normalImages(5, 64)
	for _, c := range []struct{ score, want float64 }{{1, 0}, {2, 0}, {2.5, 1}} {
		d, err := Measure(t.Context(), images, func(context.Context, int, []byte) (float64, error) { return c.score, nil }, 2, random(), Options{PerCell: 2})
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range Rows(d) {
			for _, share := range append(row.Found, d.FalseAlarms) {
				if share != c.want {
					t.Errorf("a score of %v finds %v of %q", c.score, share, row.Name)
				}
			}
		}
	}
}

func TestMeasure_DependsOnSeedNotThreads(t *testing.T) {
	images, all := normalImages(12, 64)
	measure := func(seed uint64, threads int) *models.Detectability {
		d, err := Measure(t.Context(), images, deviation(all), 0.1, rand.New(rand.NewPCG(seed, 0)), Options{PerCell: 5, Threads: threads})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	a := measure(1, 1)
	if b := measure(1, 3); !reflect.DeepEqual(a, b) {
		t.Errorf("%+v on three threads, %+v on one", b, a)
	}
	if b := measure(2, 1); reflect.DeepEqual(a, b) {
		t.Errorf("two seeds have the same result %+v", a)
	}
}

func TestPlan_HasBrighterAndDarkerAnomaliesEquallyOften(t *testing.T) {
	images, all := normalImages(8, 64)
	p, err := NewPlan(images, 4, random())
	if err != nil {
		t.Fatal(err)
	}
	paint, brighter, darker := p.Painter(), 0, 0
	for i := p.first(0); i < p.Len(); i++ {
		if p.cells[(i-p.first(0))%len(p.cells)].kind != offset {
			continue
		}
		pixels, err := paint(i)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0
		for k, v := range pixels {
			sum += int(v) - int(all[p.Image(i)][k])
		}
		switch {
		case sum > 0:
			brighter++
		case sum < 0:
			darker++
		}
	}
	if brighter != darker || brighter == 0 {
		t.Errorf("%d are brighter, %d darker", brighter, darker)
	}
}

func TestMeasure_SkipsWholeRoundsOverBudget(t *testing.T) {
	images, _ := normalImages(30, 32)
	var calls atomic.Int64
	slow := func(context.Context, int, []byte) (float64, error) {
		calls.Add(1)
		time.Sleep(100 * time.Microsecond)
		return 0, nil
	}
	d, err := Measure(t.Context(), images, slow, 1, random(), Options{PerCell: 1000, Threads: 2, Budget: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	if d.ImagesPerCell != 1 || d.NormalImages != 30 || calls.Load() > 100 {
		t.Errorf("%d scores: %+v", calls.Load(), d)
	}
}

func TestMeasure_ReturnsErrorsOfImagesAndScores(t *testing.T) {
	good, _ := normalImages(2, 32)
	short := good
	short.Layout.W = 33
	lost := errors.New("lost")
	broken := Images{2, imagefile.Layout{Size: models.Square(32)}, func(int, *[]byte) ([]byte, error) { return nil, lost }}
	never := func(context.Context, int, []byte) (float64, error) { return 0, nil }
	ended, end := context.WithCancelCause(t.Context())
	end(lost)
	for name, c := range map[string]struct {
		ctx    context.Context
		images Images
		score  ScoreFunc
		o      Options
		want   error
	}{
		"none":                     {t.Context(), Images{0, good.Layout, good.At}, never, Options{}, ErrImages},
		"of no pixels":             {t.Context(), Images{2, imagefile.Layout{}, good.At}, never, Options{}, ErrImages},
		"of another size":          {t.Context(), short, never, Options{}, ErrImages},
		"with a negative PerCell":  {t.Context(), good, never, Options{PerCell: -1}, ErrImages},
		"that cannot be read":      {t.Context(), broken, never, Options{}, lost},
		"with a cancelled context": {ended, good, never, Options{}, lost},
		"that cannot be scored":    {t.Context(), good, func(context.Context, int, []byte) (float64, error) { return 0, lost }, Options{}, lost},
		"with a score of NaN":      {t.Context(), good, func(context.Context, int, []byte) (float64, error) { return math.NaN(), nil }, Options{}, ErrScore},
		"with an infinite score":   {t.Context(), good, func(context.Context, int, []byte) (float64, error) { return math.Inf(1), nil }, Options{}, ErrScore},
		"that are valid":           {t.Context(), good, never, Options{PerCell: 1}, nil},
	} {
		if _, err := Measure(c.ctx, c.images, c.score, 1, random(), c.o); !errors.Is(err, c.want) {
			t.Errorf("images %s: %v, expected %v", name, err, c.want)
		}
	}
}

func TestResult_UsesCompleteRoundsOnly(t *testing.T) {
	images, _ := normalImages(3, 64)
	p, err := NewPlan(images, 2, random())
	if err != nil {
		t.Fatal(err)
	}
	scores := make([]float64, p.Len())
	for i := p.first(1); i < p.Len(); i++ {
		scores[i] = 2
	}
	scores[0], scores[p.first(0)+3] = math.NaN(), math.NaN()
	d, err := p.Result(scores, 1)
	if err != nil || d.ImagesPerCell != 1 || d.NormalImages != 2 || d.Found[0][0] != 1 || d.FalseAlarms != 0 {
		t.Errorf("%+v, %v", d, err)
	}
	for name, scores := range map[string][]float64{
		"none": nil, "normal images only": scores[:p.first(0)], "an unfinished round": scores[:p.first(1)], "no normal images": slices.Concat(slices.Repeat([]float64{math.NaN()}, 3), scores[3:]),
	} {
		if _, err := p.Result(scores, 1); !errors.Is(err, ErrTooFewScores) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDiameters_AscendForAnySide(t *testing.T) {
	for side, want := range map[int][]float64{16: {1, 2, 4}, 64: {1, 2, 4, 8, 16}, 256: {4, 8, 16, 32, 64}, 1024: {16, 32, 64, 128, 256}, 1: {1}} {
		if got := diameters(float64(side)); !slices.Equal(got, want) {
			t.Errorf("side %d: %v, expected %v", side, got, want)
		}
	}
}

func measured() *models.Detectability {
	return &models.Detectability{
		Threshold: 2.7912345, NormalImages: 44, FalseAlarms: 0.0455, ImagesPerCell: 10, Diameters: []float64{4, 8}, Contrasts: []float64{8, 128},
		Found: [][]float64{{0, 0.1}, {0.5, 1}}, CutPaste: []float64{0.2, 0.3}, Blur: []float64{0, 0.05},
	}
}

func TestMarkdown_HasTableAndCaveat(t *testing.T) {
	got := Markdown(measured())
	want := `| synthetic anomaly | 4 px | 8 px |
|---|---:|---:|
| 8 grey levels brighter or darker | 0 % | 10 % |
| 128 grey levels brighter or darker | 50 % | 100 % |
| texture of another normal image | 20 % | 30 % |
| blurred | 0 % | 5 % |
`
	if !strings.HasSuffix(got, "\n\n"+want) {
		t.Errorf("%s", got)
	}
	for _, part := range []string{Caveat, "of 10 images", "44 normal images", "threshold of 2.791", "5 % of the same normal images"} {
		if !strings.Contains(got, part) {
			t.Errorf("%q is missing:\n%s", part, got)
		}
	}
}

func TestSVG_IsDeterministic(t *testing.T) {
	first, err := SVG(measured())
	if err != nil {
		t.Fatal(err)
	}
	second, err := SVG(measured())
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("%v; %d and %d bytes", err, len(first), len(second))
	}
	if !bytes.Contains(first, []byte("<svg")) || !bytes.Contains(first, []byte("128 grey levels")) || len(first) > 64<<10 {
		t.Errorf("%d bytes: %.300s", len(first), first)
	}
}

// Every Detectability that passes Validate can be drawn.
func TestSVG_AcceptsAnyValidDetectability(t *testing.T) {
	many := make([]float64, 16)
	for i := range many {
		many[i] = 1e-300 * float64(i+1)
	}
	rows := make([][]float64, len(many))
	for i := range rows {
		rows[i] = make([]float64, len(many))
	}
	for name, d := range map[string]*models.Detectability{
		"one grade": {Threshold: 0, NormalImages: 1, ImagesPerCell: 1, Diameters: []float64{1}, Contrasts: []float64{255}, Found: [][]float64{{1}}},
		"many":      {Threshold: 1e308, NormalImages: 1, FalseAlarms: 1, ImagesPerCell: 1, Diameters: many, Contrasts: many, Found: rows},
	} {
		if err := d.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if svg, err := SVG(d); err != nil || bytes.Contains(svg, []byte("NaN")) {
			t.Errorf("%s: %v", name, err)
		}
		if Markdown(d) == "" {
			t.Error("no table")
		}
	}
}
