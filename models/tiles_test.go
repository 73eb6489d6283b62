package models

import (
	"errors"
	"math"
	"strings"
	"testing"
)

// tiledMetadata returns the metadata of a model of tiles of 64 pixels.
func tiledMetadata() Metadata {
	p := StandardPreprocessing()
	p.Tiles = &Tiles{Overlap: 8, Statistics: TilesAlike}
	return Metadata{Threshold: 1, ImageSize: 64, Preprocessing: p, Decision: &Decision{
		Measure: MeasureTiledPatchMahalanobis, Threshold: 1, Backbone: EmbeddedBackbone(),
		Tiles: &TileCalibration{Count: 6, Fewest: 4, Most: 9, Tail: 0.2},
	}}
}

func TestCheckTiles_RejectsWhatCannotBeJudged(t *testing.T) {
	if err := tiledMetadata().checkTiles(Square(64)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Metadata){
		"no tiles":            func(m *Metadata) { m.Preprocessing.Tiles = nil },
		"no preprocessing":    func(m *Metadata) { m.Preprocessing = nil },
		"a measure without":   func(m *Metadata) { m.Decision.Measure = MeasurePatchMahalanobis },
		"mean squared error":  func(m *Metadata) { m.Decision = nil },
		"no calibration":      func(m *Metadata) { m.Decision.Tiles = nil },
		"a wide overlap":      func(m *Metadata) { m.Preprocessing.Tiles.Overlap = 33 },
		"a negative overlap":  func(m *Metadata) { m.Preprocessing.Tiles.Overlap = -1 },
		"a long side":         func(m *Metadata) { m.Preprocessing.Tiles.LongestSide = MaxLongestSide + 1 },
		"other statistics":    func(m *Metadata) { m.Preprocessing.Tiles.Statistics = "each" },
		"places of a texture": func(m *Metadata) { m.Preprocessing.Tiles.Columns = 2 },
		"no places":           func(m *Metadata) { m.Preprocessing.Tiles.Statistics = TilesByPlace },
		"too many places": func(m *Metadata) {
			*m.Preprocessing.Tiles = Tiles{Statistics: TilesByPlace, Columns: 1 << 40, Rows: 1 << 40}
		},
		"a gain without a value": func(m *Metadata) { v := math.NaN(); m.Preprocessing.Tiles.Gain = &v },
		"a fit":                  func(m *Metadata) { m.Preprocessing.Fit = FitPad },
	} {
		m := tiledMetadata()
		change(&m)
		if err := m.checkTiles(Square(64)); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := tiledMetadata().checkTiles(Square(48)); !errors.Is(err, ErrMetadata) {
		t.Errorf("small tiles: %v", err)
	}
	for name, c := range map[string]TileCalibration{
		"no tiles": {}, "descending": {Count: 5, Fewest: 6, Most: 7}, "a negative tail": {Count: 5, Fewest: 5, Most: 5, Tail: -1},
		"more tiles than an image has": {Count: 5, Fewest: 5, Most: math.MaxInt}, "an infinite tail": {Count: 5, Fewest: 5, Most: 5, Tail: math.Inf(1)},
	} {
		m := tiledMetadata()
		m.Decision.Tiles = &c
		if err := m.Validate(); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTileCalibration_CorrectsForTheNumberOfTiles(t *testing.T) {
	c := &TileCalibration{Count: 10, Fewest: 10, Most: 20, Tail: 0.5}
	if v := c.Correction(10); v != 0 {
		t.Errorf("the usual number: %v", v)
	}
	if v := c.Correction(20); math.Abs(v-0.5*math.Ln2) > 1e-12 {
		t.Errorf("twice as many: %v", v)
	}
	if v := c.Correction(5); math.Abs(v+0.5*math.Ln2) > 1e-12 {
		t.Errorf("half as many: %v", v)
	}
	for tiles, warns := range map[int]bool{1: true, 2: true, 3: false, 10: false, 80: false, 81: true} {
		if s := c.Warning(tiles); (s != "") != warns || warns && !strings.Contains(s, "10 to 20") {
			t.Errorf("%d tiles: %q", tiles, s)
		}
	}
	var none *TileCalibration
	if none.Correction(7) != 0 || none.Warning(7) != "" {
		t.Error("without a calibration there is a correction")
	}
}
