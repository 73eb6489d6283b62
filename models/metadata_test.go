package models

import (
	"errors"
	"math"
	"testing"
)

func TestParseMetadata_RejectsMissingThreshold(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want float64 // the threshold; negative when an error is expected
	}{
		"none":                     {`{"image_size":64}`, -1},
		"zero":                     {`{"threshold":0}`, 0},
		"none in the decision":     {`{"threshold":0.02,"decision":{"measure":"mse"}}`, -1},
		"zero in the decision":     {`{"threshold":0.02,"decision":{"measure":"mse","threshold":0}}`, 0},
		"one in the decision":      {`{"threshold":0.02,"decision":{"measure":"band_mahalanobis","threshold":3}}`, 3},
		"a null decision":          {`{"threshold":0.02,"decision":null}`, 0.02},
		"negative in the decision": {`{"threshold":0.02,"decision":{"measure":"mse","threshold":-1}}`, -1},
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

func TestValidScores_RequiresFewFiniteAscendingScores(t *testing.T) {
	ascending := func(n int) []float64 {
		out := make([]float64, n)
		for i := range out {
			out[i] = float64(i)
		}
		return out
	}
	for name, c := range map[string]struct {
		scores []float64
		valid  bool
	}{
		"none, as in older models": {nil, true},
		"one":                      {[]float64{1}, true},
		"equal ones":               {[]float64{1, 1, 2}, true},
		"the largest number":       {ascending(MaxScores), true},
		"one more":                 {ascending(MaxScores + 1), false},
		"descending":               {[]float64{2, 1}, false},
		"NaN":                      {[]float64{1, math.NaN()}, false},
		"infinite":                 {[]float64{1, math.Inf(1)}, false},
	} {
		m := Metadata{Threshold: 1, Decision: &Decision{Measure: MeasureMSE, Threshold: 1, Scores: c.scores}}
		if err := m.Validate(); (err == nil) != c.valid || err != nil && !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Written scores are read back.
	read, err := ParseMetadata([]byte(`{"threshold":1,"decision":{"measure":"mse","threshold":2,"scores":[0.5,1.5],"calibrated_on":{"images":9,"skipped":1,"model":"ab"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if d := read.Decision; len(d.Scores) != 2 || d.Scores[1] != 1.5 || d.CalibratedOn == nil || d.CalibratedOn.Images != 9 || d.CalibratedOn.Model != "ab" {
		t.Errorf("%+v", d)
	}
}

// A network of one layer accepts images of two pixels, which have no patches.
func TestCheckReference_RejectsImagesTooSmallForPatches(t *testing.T) {
	m := Model{ImageSize: 2, Metadata: Metadata{Decision: &Decision{Measure: MeasureBandMahalanobis, Threshold: 1}}}
	if err := m.CheckReference(); !errors.Is(err, ErrArchitecture) {
		t.Errorf("%v", err)
	}
}
