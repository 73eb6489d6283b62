package models

import (
	"encoding/binary"
	"errors"
	"testing"
)

// The exporter writes fractions as text, other programs as numbers.
func TestParseConfig_AcceptsThresholdAsTextOrNumber(t *testing.T) {
	for what, c := range map[string]struct {
		value string
		want  float64
		err   error
	}{
		"a float":          {"G\x3f\xb0\x00\x00\x00\x00\x00\x00", 0.0625, nil},
		"a whole number":   {num(1), 1, nil},
		"a decimal":        {str("0.0625"), 0.0625, nil},
		"with an exponent": {str("6.25e-02"), 0.0625, nil},
		"a word":           {str("a little"), 0, ErrMetadata},
		"an empty string":  {str(""), 0, ErrMetadata},
		"out of range":     {str("1e999"), 0, ErrMetadata},
		"infinite":         {str("inf"), 0, ErrMetadata},
		"not a number":     {str("nan"), 0, ErrMetadata},
		"negative":         {str("-1"), 0, ErrMetadata},
	} {
		t.Run(what, func(t *testing.T) {
			m, err := Read(zipOf(tinyEntries(binary.LittleEndian, dict(str("threshold"), c.value))...), Limits{})
			if !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if err == nil && m.Metadata.Threshold != c.want {
				t.Errorf("threshold %v, want %v", m.Metadata.Threshold, c.want)
			}
		})
	}
}
