package models

import (
	"fmt"
	"math"
	"slices"
)

// Detectability is which synthetic anomalies a model finds on normal images that it
// has not learnt from: a substitute where nobody has real defects to measure with.
// Painted defects are not real ones, which may be found less or more often.
type Detectability struct {
	// Threshold is the anomaly score above which an image counted as anomalous.
	Threshold float64 `json:"threshold"`
	// NormalImages is how many normal images were painted on, FalseAlarms the share
	// of them above Threshold as they are, 0…1: so many of Found come by themselves.
	NormalImages int     `json:"normal_images"`
	FalseAlarms  float64 `json:"false_alarms"`
	// ImagesPerCell is how many painted images each share below is of.
	ImagesPerCell int `json:"images_per_cell"`
	// Diameters are the largest extents of the anomalies, in pixels of the image as
	// the network sees it, ascending. Contrasts are by how many grey levels of 255
	// they are brighter or darker, each half of the time, ascending.
	Diameters []float64 `json:"diameters"`
	Contrasts []float64 `json:"contrasts"`
	// Found is the share of images above Threshold, 0…1, by contrast and diameter:
	// len(Contrasts) rows of len(Diameters).
	Found [][]float64 `json:"found"`
	// CutPaste and Blur are such rows for anomalies of another kind: a patch of
	// another normal image, and a place that is blurred. Either may be nil.
	CutPaste []float64 `json:"cut_paste,omitempty"`
	Blur     []float64 `json:"blur,omitempty"`
}

// The largest values of a Detectability that is read from a file: far beyond what
// is written, and little to draw.
const (
	maxGrades              = 16
	maxDiameter            = 1 << 16
	maxContrast            = 255
	maxDetectabilityImages = 1 << 30
)

// Validate returns ErrMetadata, wrapped, when d has values that no such measurement
// gives: numbers that are not finite, shares beyond 0…1, too many grades or grades
// that do not ascend, and rows of another length than there are diameters.
func (d *Detectability) Validate() error {
	wrong := func(format string, values ...any) error {
		return fmt.Errorf("%w: detectability: %s", ErrMetadata, fmt.Sprintf(format, values...))
	}
	if err := validThreshold(d.Threshold); err != nil {
		return err
	}
	for _, n := range []int{d.NormalImages, d.ImagesPerCell} {
		if n < 1 || n > maxDetectabilityImages {
			return wrong("%d images, expected 1 to %d", n, maxDetectabilityImages)
		}
	}
	for _, g := range []struct {
		name   string
		grades []float64
		most   float64
	}{{"diameters", d.Diameters, maxDiameter}, {"contrasts", d.Contrasts, maxContrast}} {
		if n := len(g.grades); n < 1 || n > maxGrades {
			return wrong("%d %s, expected 1 to %d", n, g.name, maxGrades)
		}
		last := 0.0
		for _, v := range g.grades {
			if !(v > last && v <= g.most) {
				return wrong("%s has %v after %v, expected ascending numbers above 0 and up to %v", g.name, v, last, g.most)
			}
			last = v
		}
	}
	if len(d.Found) != len(d.Contrasts) {
		return wrong("found has %d rows, expected one for each of %d contrasts", len(d.Found), len(d.Contrasts))
	}
	rows := slices.Clone(d.Found)
	for _, row := range [][]float64{d.CutPaste, d.Blur} {
		if row != nil {
			rows = append(rows, row)
		}
	}
	for _, row := range rows {
		if len(row) != len(d.Diameters) {
			return wrong("a row has %d shares, expected one for each of %d diameters", len(row), len(d.Diameters))
		}
	}
	for _, share := range append(slices.Concat(rows...), d.FalseAlarms) {
		if math.IsNaN(share) || share < 0 || share > 1 {
			return wrong("%v is no share, expected 0 to 1", share)
		}
	}
	return nil
}
