package models

import (
	"errors"
	"testing"
)

func TestMetadataWithoutAThresholdDecidesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want float64 // the threshold; below 0 for a refusal
	}{
		"none at all":                    {`{"image_size":64}`, -1},
		"one of 0":                       {`{"threshold":0}`, 0},
		"a decision without":             {`{"threshold":0.02,"decision":{"measure":"mse"}}`, -1},
		"a decision with one of 0":       {`{"threshold":0.02,"decision":{"measure":"mse","threshold":0}}`, 0},
		"a decision with its own":        {`{"threshold":0.02,"decision":{"measure":"band_mahalanobis","threshold":3}}`, 3},
		"a decision that is null":        {`{"threshold":0.02,"decision":null}`, 0.02},
		"a decision with a negative one": {`{"threshold":0.02,"decision":{"measure":"mse","threshold":-1}}`, -1},
	} {
		m, err := ParseMetadata([]byte(c.text))
		if c.want < 0 {
			if !errors.Is(err, ErrMetadata) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if _, got := m.Measure(); err != nil || got != c.want {
			t.Errorf("%s: threshold %v, %v, expected %v", name, got, err, c.want)
		}
	}
}

// The measure needs places, and a network of one layer takes images of two pixels.
func TestImagesWithoutPlacesAreNotJudgedByThem(t *testing.T) {
	m := Model{ImageSize: 2, Metadata: Metadata{Decision: &Decision{Measure: MeasureBandMahalanobis, Threshold: 1}}}
	if err := m.CheckNormality(); !errors.Is(err, ErrArchitecture) {
		t.Errorf("%v", err)
	}
}
