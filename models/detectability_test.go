package models

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
)

func detectable() *Detectability {
	return &Detectability{
		Threshold: 2.5, NormalImages: 40, FalseAlarms: 0.05, ImagesPerCell: 10,
		Diameters: []float64{4, 8, 16}, Contrasts: []float64{8, 128},
		Found:    [][]float64{{0, 0.1, 0.25}, {0.5, 0.9, 1}},
		CutPaste: []float64{0, 0, 0.5}, Blur: []float64{0, 0, 0},
	}
}

func TestDetectability_SurvivesMetadataRoundTrip(t *testing.T) {
	for name, d := range map[string]*Detectability{"whole": detectable(), "without other kinds": func() *Detectability {
		d := detectable()
		d.CutPaste, d.Blur = nil, nil
		return d
	}(), "none": nil} {
		data, err := json.Marshal(Metadata{Threshold: 1, Detectability: d})
		if err != nil {
			t.Fatal(err)
		}
		m, err := ParseMetadata(data)
		if err != nil || !reflect.DeepEqual(m.Detectability, d) {
			t.Errorf("%s: %+v, %v, expected %+v", name, m.Detectability, err, d)
		}
		if strings.Contains(string(data), "detectability") != (d != nil) || len(data) > 2<<10 {
			t.Errorf("%s: %s", name, data)
		}
	}
}

func TestDetectabilityValidate_RejectsImpossibleValues(t *testing.T) {
	for name, change := range map[string]func(d *Detectability){
		"a threshold of NaN":       func(d *Detectability) { d.Threshold = math.NaN() },
		"no images":                func(d *Detectability) { d.NormalImages = 0 },
		"negative images per cell": func(d *Detectability) { d.ImagesPerCell = -1 },
		"too many images":          func(d *Detectability) { d.NormalImages = math.MaxInt },
		"no diameters":             func(d *Detectability) { d.Diameters = nil },
		"a diameter of 0":          func(d *Detectability) { d.Diameters[0] = 0 },
		"an infinite diameter":     func(d *Detectability) { d.Diameters[2] = math.Inf(1) },
		"diameters that descend":   func(d *Detectability) { d.Diameters[1] = 4 },
		"a contrast above 255":     func(d *Detectability) { d.Contrasts[1] = 256 },
		"a contrast of NaN":        func(d *Detectability) { d.Contrasts[0] = math.NaN() },
		"too many contrasts":       func(d *Detectability) { d.Contrasts = make([]float64, maxGrades+1) },
		"a missing row":            func(d *Detectability) { d.Found = d.Found[:1] },
		"a short row":              func(d *Detectability) { d.Found[1] = d.Found[1][:2] },
		"a short row of blur":      func(d *Detectability) { d.Blur = []float64{} },
		"a share above 1":          func(d *Detectability) { d.Found[0][0] = 1.01 },
		"a share below 0":          func(d *Detectability) { d.CutPaste[0] = -0.1 },
		"a share of NaN":           func(d *Detectability) { d.Found[1][1] = math.NaN() },
		"false alarms of NaN":      func(d *Detectability) { d.FalseAlarms = math.NaN() },
	} {
		d := detectable()
		change(d)
		if err := (Metadata{Threshold: 1, Detectability: d}).Validate(); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{
		`{}`, `[]`, `{"threshold":1e999}`, `{"threshold":2,"normal_images":1,"images_per_cell":1,"diameters":[4],"contrasts":[8],"found":[[2]]}`,
		`{"threshold":2,"normal_images":1,"images_per_cell":1,"diameters":[4],"contrasts":[8],"found":[null]}`,
	} {
		if _, err := ParseMetadata([]byte(`{"threshold":1,"detectability":` + text + `}`)); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
