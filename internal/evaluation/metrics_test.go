package evaluation

import (
	"encoding/json"
	"math"
	"os"
	"testing"
)

// The expected metrics were computed with scikit-learn by
// testdata/golden/make_metrics.py.
func TestComputeFigures_MatchScikitLearn(t *testing.T) {
	data, err := os.ReadFile("../../testdata/golden/metrics.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Good, Bad []float64
		Figures
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		got := computeFigures(c.Good, c.Bad)
		for name, pair := range map[string][2]float64{
			"AUROC": {got.AUROC, c.AUROC}, "average precision": {got.AveragePrecision, c.AveragePrecision},
			"best F1": {got.F1, c.F1}, "hits at 10 %": {got.HitsAt10, c.HitsAt10},
		} {
			if math.Abs(pair[0]-pair[1]) > 1e-12 {
				t.Errorf("case %d: %s is %v, scikit-learn's is %v", i, name, pair[0], pair[1])
			}
		}
		if !(got.Low <= got.AUROC && got.AUROC <= got.High) || got.HitsAt1 > got.HitsAt5 || got.HitsAt5 > got.HitsAt10 {
			t.Errorf("case %d: %+v", i, got)
		}
	}
	if len(cases) != 5 {
		t.Errorf("%d cases", len(cases))
	}
}

func TestComputeFigures_IntervalNarrowsWithMoreImages(t *testing.T) {
	var good, bad []float64
	width := func() float64 { f := computeFigures(good, bad); return f.High - f.Low }
	grow := func(n int) {
		for i := range n {
			good, bad = append(good, math.Mod(float64(i)*0.37, 1)), append(bad, math.Mod(float64(i)*0.61, 1)+0.3)
		}
	}
	grow(20)
	few := width()
	grow(400)
	if many := width(); !(many < few/2) || few <= 0 {
		t.Errorf("%v for 20 images each, %v for 420", few, many)
	}
}

func TestMean_AveragesOverKinds(t *testing.T) {
	m := mean([]Figures{{AUROC: 0.5, Hits: 1, Images: 2}, {AUROC: 1, Hits: 0, Images: 3}})
	if m.AUROC != 0.75 || m.Hits != 0.5 || m.Images != 5 {
		t.Errorf("%+v", m)
	}
}
