package evaluation

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/deepmed/anomaly/models"
	"gonum.org/v1/gonum/integrate"
	"gonum.org/v1/gonum/stat"
)

// Result is the result of an evaluation.
type Result struct {
	Measure   string  `json:"measure"`
	Threshold float64 `json:"threshold"`
	Normal    int     `json:"normal_images"`
	// FalseAlarms is the share of normal images above the model's threshold.
	FalseAlarms float64   `json:"false_alarms"`
	Defects     []Figures `json:"defects"`
	// Mean is the mean over the kinds of defects. Together treats all defective images
	// as one kind.
	Mean     Figures `json:"mean"`
	Together Figures `json:"together"`
	// Skipped are files of the test folder that are not part of the metrics.
	Skipped []models.SkippedFile `json:"skipped_files,omitempty"`

	good, bad []Judged
}

// Figures are the detection metrics of one kind of defect against the normal images.
type Figures struct {
	Name   string `json:"name"`
	Images int    `json:"images"`
	// AUROC is the area under the ROC curve: the probability that a defective image
	// scores higher than a normal one. Low and High are its 95 % bootstrap interval.
	AUROC float64 `json:"auroc"`
	Low   float64 `json:"auroc_low"`
	High  float64 `json:"auroc_high"`
	// AveragePrecision is the area under the precision-recall curve. F1 is the largest
	// F1 score at any threshold.
	AveragePrecision float64 `json:"average_precision"`
	F1               float64 `json:"best_f1"`
	// HitsAt1, HitsAt5 and HitsAt10 are the recall at a false alarm rate of 1, 5 and
	// 10 %.
	HitsAt1  float64 `json:"hits_at_1_percent"`
	HitsAt5  float64 `json:"hits_at_5_percent"`
	HitsAt10 float64 `json:"hits_at_10_percent"`
	// Hits is the recall at the model's threshold.
	Hits float64 `json:"hits"`
	// Pixels are the localization metrics; nil without masks.
	Pixels *PixelFigures `json:"pixels,omitempty"`
}

// The number of bootstrap samples, and a fixed seed for reproducible intervals.
const (
	bootstrapSamples = 1000
	bootstrapSeed    = 1
)

// computeFigures computes the metrics from the scores of normal and of defective images.
// A higher score is more anomalous.
func computeFigures(good, bad []float64) Figures {
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

// roc returns the points of the ROC curve, ordered by false alarm rate.
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

// auroc returns the area under the ROC curve.
func auroc(good, bad []float64) float64 {
	tpr, fpr := roc(good, bad)
	return integrate.Trapezoidal(fpr, tpr)
}

// precision returns the average precision, the sum of precision times gain in recall over
// all thresholds as in scikit-learn, and the largest F1 score.
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

// mean averages the metrics over kinds of defects, and Pixels over the kinds with masks.
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

// meanPixels averages the localization metrics; it returns nil when there are none.
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

// Row is a line of a table of metrics.
type Row struct {
	Figures
	// Mean reports whether the line is the mean over the others.
	Mean bool
}

// Rows returns a line for each kind of defect, and their mean.
func (r *Result) Rows() []Row {
	var rows []Row
	for _, f := range r.Defects {
		rows = append(rows, Row{f, false})
	}
	return append(rows, Row{r.Mean, true})
}

// Masked reports whether there are localization metrics.
func (r *Result) Masked() bool { return r.Mean.Pixels != nil }

// FalseAlarmsPercent returns FalseAlarms in per cent.
func (r *Result) FalseAlarmsPercent() float64 { return 100 * r.FalseAlarms }
