package models

import (
	"fmt"
	"math"
	"slices"
)

// Detectability records which synthetic anomalies a model detects on normal images
// that it was not trained on, by size and contrast. It is a substitute for a test
// on real defects, which may be detected less or more often.
type Detectability struct {
	// Threshold is the anomaly score above which an image counts as detected.
	Threshold float64 `json:"threshold"`
	// NormalImages is the number of normal images used. FalseAlarms is the share of
	// them, 0…1, that is above Threshold without an anomaly: a value in Found that
	// is no higher is due to chance.
	NormalImages int     `json:"normal_images"`
	FalseAlarms  float64 `json:"false_alarms"`
	// ImagesPerCell is the number of images with a synthetic anomaly from which each
	// share below is computed.
	ImagesPerCell int `json:"images_per_cell"`
	// Diameters are the largest extents of the anomalies, ascending, in pixels of the
	// network's input. Contrasts are the differences in grey levels (of 255),
	// ascending; half of the anomalies are brighter and half are darker.
	Diameters []float64 `json:"diameters"`
	Contrasts []float64 `json:"contrasts"`
	// Found is the share of images above Threshold, 0…1: len(Contrasts) rows of
	// len(Diameters) values.
	Found [][]float64 `json:"found"`
	// CutPaste and Blur are rows for other kinds of anomalies: texture pasted from
	// another normal image, and a blurred region. Either may be nil.
	CutPaste []float64 `json:"cut_paste,omitempty"`
	Blur     []float64 `json:"blur,omitempty"`
}

// Upper limits for a Detectability from a file. They are far above the values that
// package detectability writes, and keep tables and plots small.
const (
	maxGrades              = 16
	maxDiameter            = 1 << 16
	maxContrast            = 255
	maxDetectabilityImages = 1 << 30
)

// Validate returns ErrMetadata, wrapped, when a number is not finite, a share is
// outside 0…1, diameters or contrasts do not ascend or are too many, or a row does
// not have one share for each diameter.
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
			return wrong("%v is not a share, expected 0 to 1", share)
		}
	}
	return nil
}
