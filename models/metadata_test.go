package models

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
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

// utf16Of returns text as UTF-16 with a byte order mark.
func utf16Of(text string, order binary.AppendByteOrder) []byte {
	out := order.AppendUint16(nil, 0xfeff)
	for _, unit := range utf16.Encode([]rune(text)) {
		out = order.AppendUint16(out, unit)
	}
	return out
}

func TestParseMetadata_AcceptsAByteOrderMark(t *testing.T) {
	const text = `{"threshold":0.25,"class_names":["Riß","𝄞"]}`
	for name, data := range map[string][]byte{
		"none":                  []byte(text),
		"UTF-8":                 []byte("\ufeff" + text),
		"UTF-16, little endian": utf16Of(text, binary.LittleEndian),
		"UTF-16, big endian":    utf16Of(text, binary.BigEndian),
	} {
		m, err := ParseMetadata(data)
		if err != nil || m.Threshold != 0.25 || !slices.Equal(m.ClassNames, []string{"Riß", "𝄞"}) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	saved, err := os.ReadFile("testdata/metadata_bom.json")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := ParseMetadata(saved); err != nil || m.ImageSize != 128 || m.Decision == nil {
		t.Errorf("a file with a mark: %+v, %v", m, err)
	}
	for name, data := range map[string]string{
		"a mark alone":            "\ufeff",
		"two marks":               "\ufeff\ufeff" + text,
		"a mark of UTF-16 alone":  "\xff\xfe",
		"half a character":        "\xff\xfe{",
		"UTF-8 behind the other":  "\xff\xfe" + text,
		"half of a pair":          "\xfe\xff\xd8\x00",
		"many values, in UTF-16":  string(utf16Of("["+strings.Repeat("0,", maxMetadataValues+1)+"0]", binary.LittleEndian)),
		"UTF-16 without its mark": string(utf16Of(text, binary.LittleEndian)[2:]),
	} {
		if _, err := ParseMetadata([]byte(data)); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOverrideWarnings_NameAChangeOfTheMeasure(t *testing.T) {
	plain := &Model{Metadata: Metadata{Threshold: 0.02}}
	byMSE := &Model{Metadata: Metadata{Threshold: 0.02, Decision: &Decision{Measure: MeasureMSE, Threshold: 1}}}
	patches := &Model{Metadata: Metadata{Threshold: 0.02, Decision: &Decision{Measure: MeasurePatchMahalanobis, Threshold: 1}}}
	bands := &Model{Metadata: Metadata{Threshold: 0.02, Decision: &Decision{Measure: MeasureBandMahalanobis, Threshold: 1}}}
	for name, c := range map[string]struct {
		model *Model
		meta  *Metadata
		warns bool
	}{
		"no metadata":                                {patches, nil, false},
		"the threshold alone":                        {patches, &Metadata{Threshold: 3.5}, true},
		"the threshold alone, a model by bands":      {bands, &Metadata{Threshold: 3.5}, true},
		"a decision by the model's own measure":      {patches, &patches.Metadata, false},
		"a decision that names mse":                  {patches, &byMSE.Metadata, false},
		"the threshold alone, a model without":       {plain, &Metadata{Threshold: 3.5}, false},
		"the threshold alone, a model that names it": {byMSE, &Metadata{Threshold: 3.5}, false},
	} {
		got := OverrideWarnings(c.model, c.meta)
		if (len(got) > 0) != c.warns {
			t.Errorf("%s: %q", name, got)
		}
		if c.warns && !strings.HasPrefix(got[0], "the metadata names no decision: the verdict is by mse") {
			t.Errorf("%s: %q", name, got)
		}
	}
}
