package models

import (
	"fmt"
	"math/bits"
	"regexp"
	"slices"
)

// This file describes the reference statistics of models of earlier versions.
// Trainings no longer create such models; the service still reads, runs, exports
// and recalibrates them.

// MeasureBandMahalanobis is the anomaly score of models of earlier versions. At
// each scale, it takes the largest Mahalanobis distance of a patch's Gabor
// features (see GaborScale) from normal images. The logarithm of that
// distance is standardized by mean and standard deviation over held-out normal
// images. The scales are joined by the smooth maximum z = ½ ln Σ exp 2x, to which
// the score of the defect heads is added as one more term where the model has them
// (see GaborHeadsParameters). The anomaly score is ln(1 + exp z), which is
// positive: 1 is usual, 3 is rare.
const MeasureBandMahalanobis = "band_mahalanobis"

// Oriented is the number of orientations in the Gabor filter bank.
const Oriented = 8

// opponents is the number of opponent colour channels: red against blue, and green
// against both.
const opponents = 2

// maxBlocks is the largest number of blocks along a side of the image. The patches
// of a block share one correlation matrix, because an estimate for each patch would
// need more images.
const maxBlocks = 8

// The patches of the finest scale have at least fineCell pixels along a side, or
// half as many when there are at most manyPatches of them along a side.
const (
	fineCell    = 8
	manyPatches = 32
	minPatches  = 2
	maxPatches  = MaxImageSize / fineCell
)

// GaborScale is one scale of the Gabor features: Patches×Patches patches of
// Cell×Cell pixels. The features of a patch are the logarithms of the largest
// Gabor filter bank responses in it, for each level in eight orientations and both
// opponent colour channels, and the mean brightness and colours.
type GaborScale struct {
	Patches, Cell int
	// Levels are levels of the image pyramid: level l is the image halved l times.
	Levels []int
	// Relative reports whether the mean over all patches of the image is subtracted
	// from the features, so that overall brightness and roughness do not count. It is
	// false for the coarsest scale, which covers these.
	Relative bool
}

// GaborScales returns the scales for images of side×side pixels, the finest first.
func GaborScales(side int) []GaborScale {
	var out []GaborScale
	for g := maxPatches; g >= minPatches; g /= 2 {
		cell := side / g
		if side%g != 0 || cell < fineCell && (cell < fineCell/2 || g > manyPatches) {
			continue
		}
		// A patch of 8 to 15 pixels uses levels 0 and 1, a patch of 16 to 31 pixels
		// levels 1 and 2, and so on, as far as the patch can be halved.
		first := max(bits.Len(uint(cell))-4, 0)
		halvings := bits.TrailingZeros(uint(cell))
		s := GaborScale{Patches: g, Cell: cell, Relative: g > minPatches}
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

// Features returns the number of features of a patch.
func (s GaborScale) Features() int {
	return len(s.Levels)*(Oriented+opponents) + 1 + opponents
}

// Blocks returns the number of blocks along a side of the image. The patches of a
// block share one correlation matrix.
func (s GaborScale) Blocks() int { return min(maxBlocks, s.Patches) }

// parameter returns the tensor of the scale with this name; see GaborParameters.
func (s GaborScale) parameter(name string, shape ...int) Parameter {
	return Parameter{fmt.Sprintf("normality.%d.%s", s.Patches, name), shape}
}

// Parameters returns the tensors of the patch statistics at this scale, with D
// features, P patches and B blocks along a side:
//
//	mean       D×P×P    mean of each feature
//	precision  D×P×P    reciprocal of its standard deviation
//	whitening  B²×D×D   for each block, the inverse of the Cholesky factor of the
//	                    correlation matrix of its features
//	offset     1        mean of the logarithm of an image's largest squared
//	                    distance, over held-out normal images
//	slope      1        reciprocal of its standard deviation
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

// GaborParameters returns the tensors of all scales for images of side×side
// pixels, in file order.
func GaborParameters(side int) []Parameter {
	var ps []Parameter
	for _, s := range GaborScales(side) {
		ps = append(ps, s.Parameters()...)
	}
	return ps
}

// referenceName matches the tensor names of reference statistics, of current and
// earlier models.
var referenceName = regexp.MustCompile(`^normality\.(\d{1,3}\.(mean|precision|whitening|offset|slope)|marker\.(\d\.\d\.(weight|bias)|offset|slope)|` +
	`(patch|pooled|neighbour|place)\.\d{1,2}\.(mean|precision|whitening|scale|directions|bank)|head\.\d\.\d\.(weight|bias)|member\.(offset|slope|weight))$`)

// checkReference returns ErrArchitecture, wrapped, when a name or shape cannot be
// that of reference statistics, and ErrTooLarge, wrapped, when there are more
// elements than MaxParameters.
func (l Limits) checkReference(shapes StateDict) error {
	n := int64(0)
	for _, t := range shapes {
		if !referenceName.MatchString(t.Name) {
			return fmt.Errorf("%w: %.80q among the reference statistics, expected normality.patch.<block>.mean and similar names", ErrArchitecture, t.Name)
		}
		size := int64(1)
		for _, d := range t.Shape {
			if d < 1 || int64(d) > l.MaxParameters {
				return fmt.Errorf("%w: %s has shape %v", ErrArchitecture, t.Name, t.Shape)
			}
			if size *= int64(d); n+size > l.MaxParameters {
				return fmt.Errorf("%w: reference statistics of more than %d elements", ErrTooLarge, l.MaxParameters)
			}
		}
		n += size
	}
	return nil
}

// Describe replaces the model's metadata. It drops the reference statistics when
// the new metadata names another kind of anomaly score.
func (m *Model) Describe(md Metadata) {
	if own := m.Metadata.Preprocessing; own != nil {
		md.Preprocessing = own // The network learned from images prepared like this.
	}
	m.Metadata = md
	if measure, _ := md.Measure(); measure != m.referenceMeasure() {
		m.Reference = nil
	}
}

// referenceMeasure returns the kind of anomaly score that the model's reference
// statistics belong to.
func (m *Model) referenceMeasure() string {
	switch {
	case m.Reference == nil:
		return MeasureMSE
	case HasPatches(m.Reference) && m.Tiles() != nil:
		return MeasureTiledPatchMahalanobis
	case HasPatches(m.Reference):
		return MeasurePatchMahalanobis
	}
	return MeasureBandMahalanobis
}

// CheckReference returns an error unless the model has the reference statistics of
// its kind of anomaly score, all finite; a model with MeasureMSE must have none. The
// errors are ErrMetadata, ErrArchitecture and ErrFormat, wrapped.
func (m *Model) CheckReference() error {
	measure, _ := m.Metadata.Measure()
	if err := m.Metadata.checkTiles(m.Input()); err != nil {
		return err
	}
	if measure == MeasureMSE {
		if m.Reference != nil {
			return fmt.Errorf("%w: reference statistics in a model that decides by %s", ErrMetadata, measure)
		}
		return nil
	}
	if err := checkReferenceShapes(m.Reference, measure, m.Input(), m.Metadata.Preprocessing.places()); err != nil {
		return err
	}
	if name, ok := m.Reference.Finite(); !ok {
		return fmt.Errorf("%w: %s has elements that are not finite numbers", ErrFormat, name)
	}
	return nil
}

// checkReferenceShapes returns ErrArchitecture, wrapped, when names or shapes of the
// tensors do not match the kind of anomaly score for images of that size and the
// number of places of tiles.
func checkReferenceShapes(sd StateDict, measure string, size Size, places int) error {
	if patches := decidesByPatches(measure); patches != HasPatches(sd) {
		return fmt.Errorf("%w: it decides by %s but has no tensors for that", ErrArchitecture, measure)
	}
	if n := BankSize(sd); HasPatches(sd) && (n < 1 || n > MaxNeighbours) {
		return fmt.Errorf("%w: %d reference images, expected 1 to %d", ErrArchitecture, n, MaxNeighbours)
	}
	if n := PlaceCount(sd); n != places {
		return fmt.Errorf("%w: statistics of %d places, expected %d", ErrArchitecture, n, places)
	}
	want := sd.expected(size)
	if len(want) == 0 {
		return fmt.Errorf("%w: images of %[3]v pixels are too small for %[2]s", ErrArchitecture, measure, size)
	}
	if len(sd) != len(want) {
		return fmt.Errorf("%w: %d tensors of reference statistics, expected %d for images of %v pixels", ErrArchitecture, len(sd), len(want), size)
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
