package models

import (
	"fmt"
	"math"
)

// MeasureTiledPatchMahalanobis is the anomaly score of an image that is judged tile by
// tile. Each tile has the anomaly score of MeasurePatchMahalanobis. The image's score is
// the highest of its tiles', less what more tiles raise it by; see
// TileCalibration.Correction. Programs that do not know tiles refuse a model that decides
// by this measure.
const MeasureTiledPatchMahalanobis = "tiled_patch_mahalanobis"

// Tiles describes how an image is cut into tiles of ImageSize×ImageSize pixels, the
// network's input. Without LongestSide, tiles are cut from the image as it is decoded;
// else from the image resized so that its longest side has that many pixels. The tiles of
// a row and of a column are the fewest that cover the image and overlap by at least
// Overlap pixels; they are evenly spaced. An image that is smaller than a tile is
// continued with its last pixels.
type Tiles struct {
	Overlap     int            `json:"overlap"`
	LongestSide int            `json:"longest_side,omitempty"`
	Statistics  TileStatistics `json:"statistics"`
	// Columns and Rows are the number of tiles of an image that TilesByPlace requires; 0
	// for other statistics.
	Columns int `json:"columns,omitempty"`
	Rows    int `json:"rows,omitempty"`
	// Gain is the share of the variance of features of held-out images that their place
	// in the image explains, by which Statistics was chosen; nil if it was given, or if
	// the images have different grids.
	Gain *float64 `json:"gain,omitempty"`
}

// TileStatistics says which tiles share their reference statistics.
type TileStatistics string

const (
	// TilesAlike means that tiles of all places share their statistics: textures.
	TilesAlike TileStatistics = "same"
	// TilesByPlace means that features are compared with those at the same place of the
	// image: images of one layout, such as circuit boards.
	TilesByPlace TileStatistics = "places"
)

// Limits of tiles.
const (
	// MinTileSide is the smallest side of a tile, in pixels.
	MinTileSide = 64
	// MaxLongestSide is the largest Tiles.LongestSide, in pixels.
	MaxLongestSide = 8192
	// maxPlaces bounds the tiles of an image in a model file, as tiling.MaxTiles does.
	maxPlaces = 4096
)

// MaxTileOverlap returns the largest overlap of tiles of a side, in pixels.
func MaxTileOverlap(side int) int { return side / 2 }

// Check returns ErrMetadata, wrapped, if tiles of a side cannot be cut as described.
func (t *Tiles) Check(side int) error {
	switch {
	case side < MinTileSide:
		return fmt.Errorf("%w: tiles of %d pixels, expected at least %d", ErrMetadata, side, MinTileSide)
	case t.Overlap < 0 || t.Overlap > MaxTileOverlap(side):
		return fmt.Errorf("%w: tiles of %d pixels overlap by %d, expected 0 to %d", ErrMetadata, side, t.Overlap, MaxTileOverlap(side))
	case t.LongestSide < 0 || t.LongestSide > MaxLongestSide:
		return fmt.Errorf("%w: the longest side is scaled to %d pixels, expected at most %d", ErrMetadata, t.LongestSide, MaxLongestSide)
	}
	switch t.Statistics {
	case TilesAlike:
		if t.Columns != 0 || t.Rows != 0 {
			return fmt.Errorf("%w: %d×%d places for statistics that tiles share", ErrMetadata, t.Columns, t.Rows)
		}
	case TilesByPlace:
		if t.Columns < 1 || t.Rows < 1 || t.Columns > maxPlaces/t.Rows {
			return fmt.Errorf("%w: %d×%d places, expected 1 to %d", ErrMetadata, t.Columns, t.Rows, maxPlaces)
		}
	default:
		return fmt.Errorf("%w: the statistics of tiles are %.40q, expected %q or %q", ErrMetadata, t.Statistics, TilesAlike, TilesByPlace)
	}
	if t.Gain != nil && (math.IsNaN(*t.Gain) || math.IsInf(*t.Gain, 0)) {
		return fmt.Errorf("%w: the gain of statistics by place is %v", ErrMetadata, *t.Gain)
	}
	return nil
}

// Places returns the number of places with statistics of their own, 0 for TilesAlike.
func (t *Tiles) Places() int {
	if t == nil {
		return 0
	}
	return t.Columns * t.Rows
}

// TileCalibration relates the score of an image to the number of its tiles.
type TileCalibration struct {
	// Count is the median number of tiles of the calibration images, Fewest and Most are
	// the smallest and the largest.
	Count  int `json:"count"`
	Fewest int `json:"fewest"`
	Most   int `json:"most"`
	// Tail is the mean of what the tiles with the highest scores exceed the others by:
	// the scale of an exponential tail. The highest of n scores with such a tail rises by
	// Tail·ln(n).
	Tail float64 `json:"tail"`
}

// Correction returns what is subtracted from the highest score of the tiles of an image, so
// that images of any number of tiles are above a threshold equally often. It is 0 for Count
// tiles. A nil calibration corrects nothing.
func (c *TileCalibration) Correction(tiles int) float64 {
	if c == nil {
		return 0
	}
	return c.Tail * math.Log(float64(max(tiles, 1))/float64(c.Count))
}

// farTiles is the factor between the numbers of tiles of an image and of the calibration
// images from which on the correction is an extrapolation that a verdict warns of.
const farTiles = 4

// Warning returns a sentence if an image has so many or so few tiles that its threshold is
// uncertain, else "".
func (c *TileCalibration) Warning(tiles int) string {
	if c == nil || tiles <= farTiles*c.Most && farTiles*tiles >= c.Fewest {
		return ""
	}
	return fmt.Sprintf("the image has %d tiles, the images of the calibration had %d to %d: the false alarm rate is uncertain; calibrate on images of this size, or train with a longest side",
		tiles, c.Fewest, c.Most)
}

func (c *TileCalibration) validate() error {
	if c == nil {
		return nil
	}
	if c.Fewest < 1 || c.Count < c.Fewest || c.Most < c.Count || c.Most > maxPlaces {
		return fmt.Errorf("%w: the calibration images have %d, %d and %d tiles, expected ascending numbers from 1 to %d", ErrMetadata, c.Fewest, c.Count, c.Most, maxPlaces)
	}
	if !(c.Tail >= 0 && c.Tail <= math.MaxFloat32) {
		return fmt.Errorf("%w: the tail of the tiles' scores is %v, expected a number of 0 or more", ErrMetadata, c.Tail)
	}
	return nil
}

// checkTiles returns ErrMetadata, wrapped, unless the metadata of a model with inputs of
// that size describes tiles if and only if the model decides by tiles.
func (m Metadata) checkTiles(size Size) error {
	measure, _ := m.Measure()
	tiled := m.Preprocessing != nil && m.Preprocessing.Tiles != nil
	if tiled != (measure == MeasureTiledPatchMahalanobis) {
		if tiled {
			return fmt.Errorf("%w: it decides by %s, but its images are cut into tiles", ErrMetadata, measure)
		}
		return fmt.Errorf("%w: it decides by %s and does not describe tiles", ErrMetadata, measure)
	}
	if !tiled {
		return nil
	}
	if m.Decision.Tiles == nil {
		return fmt.Errorf("%w: its decision does not describe the tiles of its calibration", ErrMetadata)
	}
	if m.Framed() {
		return fmt.Errorf("%w: tiles of images with a fit, a window or a region", ErrMetadata)
	}
	return m.Preprocessing.Tiles.Check(size.Side())
}

// Tiles returns how the model's images are cut into tiles, or nil if they are not.
func (m *Model) Tiles() *Tiles {
	if p := m.Metadata.Preprocessing; p != nil {
		return p.Tiles
	}
	return nil
}

// decidesByPatches reports whether a measure requires the tensors of PatchParameters.
func decidesByPatches(measure string) bool {
	return measure == MeasurePatchMahalanobis || measure == MeasureTiledPatchMahalanobis
}

// PlaceParameters returns the tensors of TilesByPlace, for tiles of that size and
// each tap with C channels and P patches along a side:
//
//	mean   places×C×P×P  mean of the features at each place of the image
//	scale  places×1×P×P  factor of the deviation from it
//
// The statistics of PatchParameters are then those of (features − mean)·scale, except for
// the defect heads, whose input is the features.
func PlaceParameters(size Size, places int) []Parameter {
	if places == 0 {
		return nil
	}
	var ps []Parameter
	for _, t := range Taps() {
		p := t.Patches(size)
		name := fmt.Sprintf("%s%d.", placePrefix, t.Block)
		ps = append(ps, Parameter{name + "mean", []int{places, t.Channels, p.H, p.W}}, Parameter{name + "scale", []int{places, 1, p.H, p.W}})
	}
	return ps
}

const placePrefix = referencePrefix + "place."

// PlaceCount returns the number of places of reference statistics, 0 if all tiles share
// them.
func PlaceCount(reference StateDict) int {
	if t, ok := reference.Get(fmt.Sprintf("%s%d.mean", placePrefix, Taps()[0].Block)); ok && len(t.Shape) == 4 {
		return t.Shape[0]
	}
	return 0
}

// places returns the number of places with statistics of their own.
func (p *Preprocessing) places() int {
	if p == nil {
		return 0
	}
	return p.Tiles.Places()
}
