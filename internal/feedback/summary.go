package feedback

import (
	"math"
	"slices"
)

// above is the share by which a suggested threshold is above the highest score. It is
// larger than the difference of two runtimes by rounding.
const above = 1e-4

// Errors are the images that a threshold decides wrongly.
type Errors struct {
	// FalseAlarms are the normal images above the threshold, Missed the anomalous images
	// that are not.
	FalseAlarms int `json:"false_alarms"`
	Missed      int `json:"missed"`
}

func (e Errors) sum() int { return e.FalseAlarms + e.Missed }

// Summary counts the images of each label, and those that a threshold decides wrongly.
type Summary struct {
	Normal    int `json:"normal"`
	Anomalous int `json:"anomalous"`
	Errors
	Threshold float64 `json:"threshold"`
	// Suggested is a threshold with fewer errors, and AtSuggested its errors. Both are nil
	// if there is none.
	Suggested   *float64 `json:"suggested_threshold"`
	AtSuggested *Errors  `json:"suggested"`
}

// Summarize returns the summary of images by their scores; images without a score are not
// counted. lowest is the lowest threshold that keeps the promised false alarm rate on the
// calibration images, or NaN if that is not known: then no threshold is suggested.
//
// Of the thresholds from lowest on, Suggested has the fewest errors on the images, and of
// equally good ones it is the closest to threshold. It is nil if threshold itself is equally
// good. It is in the middle between two scores, at lowest, or just above all scores.
func Summarize(records []Record, threshold, lowest float64) Summary {
	s := Summary{Threshold: threshold}
	var scores []float64
	records = slices.DeleteFunc(slices.Clone(records), func(r Record) bool { return r.Score == nil })
	for _, r := range records {
		scores = append(scores, *r.Score)
		if r.Label == Anomalous {
			s.Anomalous++
		} else {
			s.Normal++
		}
	}
	s.Errors = errorsAt(records, threshold)
	if math.IsNaN(lowest) || len(scores) == 0 {
		return s
	}
	slices.Sort(scores)
	candidates := []float64{lowest}
	for i, v := range scores[1:] {
		candidates = append(candidates, scores[i]+(v-scores[i])/2)
	}
	candidates = append(candidates, scores[len(scores)-1]*(1+above))
	best := s.Errors
	for _, t := range candidates {
		if t < lowest {
			continue
		}
		e := errorsAt(records, t)
		if e.sum() < best.sum() || e.sum() == best.sum() && s.Suggested != nil && math.Abs(t-threshold) < math.Abs(*s.Suggested-threshold) {
			best, s.Suggested, s.AtSuggested = e, &t, &e
		}
	}
	return s
}

func errorsAt(records []Record, threshold float64) (e Errors) {
	for _, r := range records {
		switch anomaly := *r.Score > threshold; {
		case anomaly && r.Label == Normal:
			e.FalseAlarms++
		case !anomaly && r.Label == Anomalous:
			e.Missed++
		}
	}
	return e
}
