package evaluation

import (
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/integrate"
	"gonum.org/v1/gonum/stat"
)

// Result is what an evaluation came to.
type Result struct {
	Measure   string  `json:"measure"`
	Threshold float64 `json:"threshold"`
	Normal    int     `json:"normal_images"`
	// FalseAlarms is the share of normal images above the model's threshold.
	FalseAlarms float64   `json:"false_alarms"`
	Defects     []Figures `json:"defects"`
	// Mean is the mean over the kinds of defects, Together takes all defective
	// images as one kind.
	Mean     Figures `json:"mean"`
	Together Figures `json:"together"`

	good, bad []Judged
}

// Figures tell how well one kind of defect is told from normal images.
type Figures struct {
	Name   string `json:"name"`
	Images int    `json:"images"`
	// AUROC is the chance that a defect scores higher than a normal image; Low
	// and High are where it lies in 95 of 100 bootstrap samples.
	AUROC float64 `json:"auroc"`
	Low   float64 `json:"auroc_low"`
	High  float64 `json:"auroc_high"`
	// AveragePrecision is the mean precision over the hits; F1 the best there
	// is at any threshold.
	AveragePrecision float64 `json:"average_precision"`
	F1               float64 `json:"best_f1"`
	// HitsAt is the share of defects found at 1, 5 and 10 % false alarms.
	HitsAt1  float64 `json:"hits_at_1_percent"`
	HitsAt5  float64 `json:"hits_at_5_percent"`
	HitsAt10 float64 `json:"hits_at_10_percent"`
	// Hits is the share of defects above the model's own threshold.
	Hits float64 `json:"hits"`
	// Pixels tell how well the maps show where the defects are; nil without
	// masks.
	Pixels *PixelFigures `json:"pixels,omitempty"`
}

// bootstrapSamples and their seed: the same figures give the same interval.
const (
	bootstrapSamples = 1000
	bootstrapSeed    = 1
)

// figures of normal and defective images' scores; higher is more anomalous.
func figures(good, bad []float64) Figures {
	f := Figures{AUROC: auroc(good, bad)}
	r := rand.New(rand.NewPCG(bootstrapSeed, 0))
	samples := make([]float64, bootstrapSamples)
	g, b := make([]float64, len(good)), make([]float64, len(bad))
	for i := range samples {
		for k := range g {
			g[k] = good[r.IntN(len(good))]
		}
		for k := range b {
			b[k] = bad[r.IntN(len(bad))]
		}
		samples[i] = auroc(g, b)
	}
	slices.Sort(samples)
	f.Low = stat.Quantile(0.025, stat.Empirical, samples, nil)
	f.High = stat.Quantile(0.975, stat.Empirical, samples, nil)
	f.AveragePrecision, f.F1 = precision(good, bad)
	tpr, fpr := roc(good, bad)
	for _, at := range []struct {
		rate float64
		hits *float64
	}{{0.01, &f.HitsAt1}, {0.05, &f.HitsAt5}, {0.1, &f.HitsAt10}} {
		for i := range fpr {
			if fpr[i] <= at.rate {
				*at.hits = math.Max(*at.hits, tpr[i])
			}
		}
	}
	return f
}

// roc gives the curve's points, false alarms rising.
func roc(good, bad []float64) (tpr, fpr []float64) {
	scores := slices.Concat(good, bad)
	order := make([]int, len(scores))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case scores[a] < scores[b]:
			return -1
		case scores[a] > scores[b]:
			return 1
		}
		return 0
	})
	sorted, classes := make([]float64, len(scores)), make([]bool, len(scores))
	for i, at := range order {
		sorted[i], classes[i] = scores[at], at >= len(good)
	}
	tpr, fpr, _ = stat.ROC(nil, sorted, classes, nil)
	return tpr, fpr
}

func auroc(good, bad []float64) float64 {
	tpr, fpr := roc(good, bad)
	return integrate.Trapezoidal(fpr, tpr)
}

// precision gives the average precision (the sum of precision times the gain in
// recall, as scikit-learn has it) and the best F1, over the thresholds at which
// something changes.
func precision(good, bad []float64) (average, best float64) {
	thresholds := slices.Clone(bad)
	slices.Sort(thresholds)
	slices.Reverse(thresholds)
	thresholds = slices.Compact(thresholds)
	recalled := 0.0
	for _, t := range thresholds {
		hits, alarms := 0.0, 0.0
		for _, b := range bad {
			if b >= t {
				hits++
			}
		}
		for _, g := range good {
			if g >= t {
				alarms++
			}
		}
		p, recall := hits/(hits+alarms), hits/float64(len(bad))
		average += p * (recall - recalled)
		recalled = recall
		best = math.Max(best, 2*p*recall/(p+recall))
	}
	return average, best
}

// mean averages the figures over kinds of defects, those of pixels over the kinds
// that have masks.
func mean(all []Figures) Figures {
	m := Figures{Name: "mean"}
	n := float64(len(all))
	for _, f := range all {
		m.Images += f.Images
		for _, p := range [][2]*float64{
			{&m.AUROC, &f.AUROC}, {&m.Low, &f.Low}, {&m.High, &f.High}, {&m.AveragePrecision, &f.AveragePrecision}, {&m.F1, &f.F1},
			{&m.HitsAt1, &f.HitsAt1}, {&m.HitsAt5, &f.HitsAt5}, {&m.HitsAt10, &f.HitsAt10}, {&m.Hits, &f.Hits},
		} {
			*p[0] += *p[1] / n
		}
	}
	m.Pixels = meanPixels(all)
	return m
}

func meanPixels(all []Figures) *PixelFigures {
	m, n := PixelFigures{}, 0.0
	for _, f := range all {
		if f.Pixels != nil {
			m.AUROC, m.PRO, m.Regions, n = m.AUROC+f.Pixels.AUROC, m.PRO+f.Pixels.PRO, m.Regions+f.Pixels.Regions, n+1
		}
	}
	if n == 0 {
		return nil
	}
	m.AUROC, m.PRO = m.AUROC/n, m.PRO/n
	return &m
}

// Row is a line of a table of figures.
type Row struct {
	Figures
	// Mean says that it is the mean over the others.
	Mean bool
}

// Rows are the figures of each kind of defect, and their mean.
func (r *Result) Rows() []Row {
	var rows []Row
	for _, f := range r.Defects {
		rows = append(rows, Row{f, false})
	}
	return append(rows, Row{r.Mean, true})
}

// Masked reports whether there are figures of pixels.
func (r *Result) Masked() bool { return r.Mean.Pixels != nil }

// FalseAlarmsPercent is FalseAlarms in per cent.
func (r *Result) FalseAlarmsPercent() float64 { return 100 * r.FalseAlarms }
