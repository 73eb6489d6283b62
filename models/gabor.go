package models

import (
	"fmt"
	"math/bits"
	"regexp"
	"slices"
)

// MeasureBandMahalanobis is how far the places of an image are from those of
// normal images. At each scale it is the largest Mahalanobis distance over all
// places of the oriented band energies there, see GaborScale: its logarithm,
// in standard deviations above what images that were not learnt from have. Of all
// scales z is the smooth maximum, ½ ln Σ exp 2x. It is given as ln(1 + exp z), so
// that it is above 0: 1 is usual, 3 is rare. Where there are markers their figure
// is one more of those that are joined; see GaborHeadsParameters.
const MeasureBandMahalanobis = "band_mahalanobis"

// Oriented is how many orientations of edges and lines are told apart.
const Oriented = 8

// opponents are the channels of colour beside brightness: red against blue, and
// green against both.
const opponents = 2

// Blocks is the number of blocks along a side of the image, at most, whose
// places share one correlation matrix. More would need more images to be known.
const Blocks = 8

// The places of the finest scale have at least fineCell pixels along a side, or
// half of that where they are not more than manyPlaces.
const (
	fineCell   = 8
	manyPlaces = 32
	minPlaces  = 2
	maxPlaces  = MaxImageSize / fineCell
)

// GaborScale is one scale that images are looked at: Patches×Patches places of
// Cell×Cell pixels. What is seen of a place are the logarithms of the energies of
// bands, the largest in the place: at each of the Levels (the image halved so
// often) in eight orientations, and of both channels of colour; and the mean
// brightness and colour.
type GaborScale struct {
	Patches, Cell int
	Levels        []int
	// Relative says that an image's mean over all places is subtracted, so
	// that it is held against itself: how bright it is as a whole, or how rough,
	// does not count. The coarsest scale is not relative, and sees that.
	Relative bool
}

// GaborScales are the scales for images of that side, the finest first.
func GaborScales(side int) []GaborScale {
	var out []GaborScale
	for g := maxPlaces; g >= minPlaces; g /= 2 {
		cell := side / g
		if side%g != 0 || cell < fineCell && (cell < fineCell/2 || g > manyPlaces) {
			continue
		}
		// A place of 8 to 15 pixels is seen at levels 0 and 1, one twice as
		// large at levels 1 and 2, and so on, as far as it can be halved.
		first := max(bits.Len(uint(cell))-4, 0)
		halvings := bits.TrailingZeros(uint(cell))
		s := GaborScale{Patches: g, Cell: cell, Relative: g > minPlaces}
		for l := first; l <= first+1; l++ {
			if l <= halvings {
				s.Levels = append(s.Levels, l)
			}
		}
		if len(s.Levels) == 0 {
			s.Levels = []int{halvings}
		}
		out = append(out, s)
	}
	return out
}

// Features is the number of energies seen of a place.
func (s GaborScale) Features() int {
	return len(s.Levels)*(Oriented+opponents) + 1 + opponents
}

// Blocks is the number of blocks along a side.
func (s GaborScale) Blocks() int { return min(Blocks, s.Patches) }

// Parameter is one of the scale's tensors; see GaborParameters.
func (s GaborScale) parameter(name string, shape ...int) Parameter {
	return Parameter{fmt.Sprintf("normality.%d.%s", s.Patches, name), shape}
}

// Parameters are the tensors that describe the places of normal images at this
// scale, with D features and P places along a side:
//
//	mean       D×P×P    of each feature
//	precision  D×P×P    one over its standard deviation
//	whitening  B²×D×D   for each of B×B blocks, the inverse of the Cholesky
//	                    factor of its features' correlation matrix
//	offset     1        mean of the logarithm of an image's largest squared
//	                    distance, over images that were not learnt from
//	slope      1        one over its standard deviation
func (s GaborScale) Parameters() []Parameter {
	d, p, b := s.Features(), s.Patches, s.Blocks()
	return []Parameter{
		s.parameter("mean", d, p, p),
		s.parameter("precision", d, p, p),
		s.parameter("whitening", b*b, d, d),
		s.parameter("offset", 1),
		s.parameter("slope", 1),
	}
}

// GaborParameters are the tensors of all scales for images of that side, in
// the order in which they are written.
func GaborParameters(side int) []Parameter {
	var ps []Parameter
	for _, s := range GaborScales(side) {
		ps = append(ps, s.Parameters()...)
	}
	return ps
}

// normalityName is what the names of these tensors look like.
var normalityName = regexp.MustCompile(`^normality\.(\d{1,3}\.(mean|precision|whitening|offset|slope)|marker\.(\d\.\d\.(weight|bias)|offset|slope)|` +
	`(patch|pooled|neighbour)\.\d{1,2}\.(mean|precision|whitening|scale|directions|bank)|head\.\d\.\d\.(weight|bias)|member\.(offset|slope|weight))$`)

// checkNormality returns ErrArchitecture, wrapped, when names and shapes are not
// those of any such tensors, and ErrTooLarge when they have more elements than
// are read.
func (l Limits) checkNormality(shapes StateDict) error {
	n := int64(0)
	for _, t := range shapes {
		if !normalityName.MatchString(t.Name) {
			return fmt.Errorf("%w: %.80q among the tensors of normality, expected normality.<places>.mean and the like", ErrArchitecture, t.Name)
		}
		size := int64(1)
		for _, d := range t.Shape {
			if d < 1 || int64(d) > l.MaxParameters {
				return fmt.Errorf("%w: %s has shape %v", ErrArchitecture, t.Name, t.Shape)
			}
			if size *= int64(d); n+size > l.MaxParameters {
				return fmt.Errorf("%w: tensors of normality of more than %d elements", ErrTooLarge, l.MaxParameters)
			}
		}
		n += size
	}
	return nil
}

// Describe gives the model other metadata, and drops the tensors of normality when
// it is not to be judged by them any more.
func (m *Model) Describe(md Metadata) {
	m.Metadata = md
	if measure, _ := md.Measure(); measure != m.measureOfTensors() {
		m.Reference = nil
	}
}

// measureOfTensors is the measure that the model has the tensors for.
func (m *Model) measureOfTensors() string {
	switch {
	case m.Reference == nil:
		return MeasureMSE
	case HasPatches(m.Reference):
		return MeasurePatchMahalanobis
	}
	return MeasureBandMahalanobis
}

// CheckReference returns an error unless a model has the tensors of the measure that
// it decides by, all finite, and one that decides by MeasureMSE none.
func (m *Model) CheckReference() error {
	measure, _ := m.Metadata.Measure()
	if measure == MeasureMSE {
		if m.Reference != nil {
			return fmt.Errorf("%w: tensors of normality in a model that decides by %s", ErrMetadata, measure)
		}
		return nil
	}
	if err := fitsNormality(m.Reference, measure, m.ImageSize); err != nil {
		return err
	}
	if name, ok := m.Reference.Finite(); !ok {
		return fmt.Errorf("%w: %s has elements that are not finite numbers", ErrFormat, name)
	}
	return nil
}

// fitsNormality returns ErrArchitecture, wrapped, when the tensors are not those of
// the measure for that side.
func fitsNormality(sd StateDict, measure string, side int) error {
	if patches := measure == MeasurePatchMahalanobis; patches != HasPatches(sd) {
		return fmt.Errorf("%w: it decides by %s, whose tensors it has not", ErrArchitecture, measure)
	}
	if n := BankSize(sd); HasPatches(sd) && (n < 1 || n > MaxNeighbours) {
		return fmt.Errorf("%w: %d normal images to compare with, expected 1 to %d", ErrArchitecture, n, MaxNeighbours)
	}
	want := sd.expected(side)
	if len(want) == 0 {
		return fmt.Errorf("%w: it decides by %s, which images of %d×%d pixels are too small for", ErrArchitecture, measure, side, side)
	}
	if len(sd) != len(want) {
		return fmt.Errorf("%w: %d tensors of normality, expected %d for images of %d×%d pixels", ErrArchitecture, len(sd), len(want), side, side)
	}
	for _, p := range want {
		t, ok := sd.Get(p.Name)
		if !ok {
			return fmt.Errorf("%w: %s is missing", ErrArchitecture, p.Name)
		}
		if !slices.Equal(t.Shape, p.Shape) {
			return fmt.Errorf("%w: %s has shape %v, expected %v", ErrArchitecture, p.Name, t.Shape, p.Shape)
		}
	}
	return nil
}
