package models

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/deepmed/anomaly/internal/backbone"
)

// MeasurePatchMahalanobis is how far the patch features of an image, taken from a
// backbone that was trained on ImageNet, are from those of normal images. Several
// members, see Members, each give one figure: the logarithm of a squared distance,
// or the logit of the heads. Each is put into standard deviations above what normal
// images have that were not learnt from; z is their weighted mean. It is given as
// ln(1 + exp z), so that it is above 0: 0.7 is usual, 2 is rare.
const MeasurePatchMahalanobis = "patch_mahalanobis"

// PatchRank is how many directions of each patch's covariance are kept beside the
// one that all patches share.
const PatchRank = 16

// MaxNeighbours bounds the normal images that the pooled features of a new one are
// held against.
const MaxNeighbours = 500

// Taps are the blocks of the backbone whose results are described by statistics, at
// strides of 16 and 32 pixels. Later blocks found defects no better, and are neither
// computed nor in the program; see docs/detection.md.
func Taps() []Tap { return []Tap{tapOf(10), tapOf(12)} }

// HeadTaps are the blocks that heads see, the finest first: patches of 8 pixels, and
// what Taps has.
func HeadTaps() []Tap { return append([]Tap{tapOf(4)}, Taps()...) }

// Tap is a block of the backbone whose result is used.
type Tap struct {
	Block    int
	Channels int
	// Stride is how many pixels of the backbone's image a patch has along a side.
	Stride int
}

func tapOf(block int) Tap {
	t := backbone.Lite0().Tap(block)
	return Tap{block, t.Channels, t.Stride}
}

// Patches is the number of patches along a side, for images of a model of that side.
func (t Tap) Patches(side int) int { return BackboneInputOf(side).Side / t.Stride }

// The smallest side of an image that the backbone sees, in pixels, and what a side is
// a multiple of: the stride of its last block.
const (
	minBackboneSide = 128
	backboneStride  = 32
)

// BackboneInput says how an image of a model becomes the backbone's: enlarged so many
// times, and then with its edge repeated on each side by so many pixels, which gives
// an image of Side×Side.
type BackboneInput struct{ Times, Border, Side int }

// BackboneInputOf returns the input for images of that side, a multiple of 16: images
// of less than 128 pixels are enlarged, since the backbone was trained on objects of
// that size and more.
func BackboneInputOf(side int) BackboneInput {
	times := (minBackboneSide + side - 1) / side
	in := BackboneInput{Times: times, Side: side * times}
	if rest := in.Side % backboneStride; rest != 0 {
		in.Border = (backboneStride - rest) / 2
		in.Side += 2 * in.Border
	}
	return in
}

// Member is one of the figures that MeasurePatchMahalanobis is the mean of.
type Member struct {
	// Kind names how it is computed, Block the backbone's block that it describes.
	Kind  MemberKind
	Block int
}

// MemberKind names a kind of Member.
type MemberKind string

// The kinds of members.
const (
	// PatchGaussian is the largest Mahalanobis distance of a patch from the
	// Gaussian of its place (PaDiM, Defard et al., 2020).
	PatchGaussian MemberKind = "patch"
	// Heads are the largest logit of what was trained on synthetic anomalies.
	Heads MemberKind = "heads"
	// PooledGaussian is the Mahalanobis distance of the mean over all patches
	// (Rippel et al., 2021).
	PooledGaussian MemberKind = "pooled"
	// PooledNeighbour is the distance of that mean from the nearest normal image's
	// (DN2, Bergman et al., 2020).
	PooledNeighbour MemberKind = "neighbour"
)

// Members are those of a model with heads or without, in the order of the tensors
// that join them. Those that say where an anomaly is come first: PatchMembers.
func Members(heads bool) []Member {
	var ms []Member
	each := func(k MemberKind) {
		for _, t := range Taps() {
			ms = append(ms, Member{k, t.Block})
		}
	}
	each(PatchGaussian)
	if heads {
		ms = append(ms, Member{Kind: Heads})
	}
	each(PooledGaussian)
	each(PooledNeighbour)
	return ms
}

// PatchMembers is how many members, from the first on, have a figure for each place.
func PatchMembers(heads bool) int {
	n := len(Taps())
	if heads {
		n++
	}
	return n
}

func (m Member) parameter(name string, shape ...int) Parameter {
	return Parameter{fmt.Sprintf("%s%s.%d.%s", normalityPrefix, m.Kind, m.Block, name), shape}
}

const (
	normalityPrefix = "normality."
	patchPrefix     = normalityPrefix + string(PatchGaussian) + "."
	headPrefix      = normalityPrefix + "head."
	memberPrefix    = normalityPrefix + "member."
)

// Parameters are the tensors of a member but the heads, of features with C channels
// and P places along a side; R is PatchRank, bank how many normal images there are
// to compare with:
//
//	patch      mean        C×P×P     of the features of each place
//	           whitening   C×C×1×1   the inverse of the Cholesky factor of the
//	                                 covariance that all places share
//	           scale       1×P×P     of the squared whitened deviation at each place
//	           directions  P²×R×C    what is taken off: the deviation along
//	                                 directions in which a place varies
//	pooled     mean        C×1×1     of the mean over all places
//	           precision   C×1×1     one over its standard deviation
//	           whitening   1×C×C     the inverse of the Cholesky factor of its
//	                                 correlation matrix
//	neighbour  mean        C×1×1     of the mean over all places
//	           whitening   C×C×1×1
//	           bank        bank×C    the whitened means of normal images
func (m Member) Parameters(side, bank int) []Parameter {
	if m.Kind == Heads {
		return nil
	}
	tap := tapOf(m.Block)
	c, p := tap.Channels, tap.Patches(side)
	switch m.Kind {
	case PatchGaussian:
		return []Parameter{
			m.parameter("mean", c, p, p), m.parameter("whitening", c, c, 1, 1),
			m.parameter("scale", 1, p, p), m.parameter("directions", p*p, PatchRank, c),
		}
	case PooledGaussian:
		return []Parameter{m.parameter("mean", c, 1, 1), m.parameter("precision", c, 1, 1), m.parameter("whitening", 1, c, c)}
	default:
		return []Parameter{m.parameter("mean", c, 1, 1), m.parameter("whitening", c, c, 1, 1), m.parameter("bank", bank, c)}
	}
}

// The heads: two small convolutional networks on the features of patches, which mark
// synthetic anomalies; see docs/detection.md. Each is trained on one half of the
// images, so that each image can be judged by the one that has not seen it.
const (
	// HeadCount is their number.
	HeadCount = 2
	// HeadWidth is the number of channels of a head's hidden layers.
	HeadWidth = 32
)

// headKernels are the sides of a head's kernels, layer by layer.
var headKernels = []int{1, 3, 3, 1}

// HeadChannels is what a head sees of a patch: the channels of HeadTaps.
func HeadChannels() int {
	n := 0
	for _, t := range HeadTaps() {
		n += t.Channels
	}
	return n
}

// HeadParameters are the tensors of head k, layer by layer a weight (O×I×K×K) and a
// bias (O).
func HeadParameters(k int) []Parameter {
	var ps []Parameter
	in := HeadChannels()
	for i, kernel := range headKernels {
		out := HeadWidth
		if i == len(headKernels)-1 {
			out = 1
		}
		name := fmt.Sprintf("%s%d.%d.", headPrefix, k, i)
		ps = append(ps, Parameter{name + "weight", []int{out, in, kernel, kernel}}, Parameter{name + "bias", []int{out}})
		in = out
	}
	return ps
}

// JoinParameters are the tensors that join M members: offset, the mean of each over
// normal images that were not learnt from, slope, one over its standard deviation,
// and weight, which adds up to 1. Each is M×1×1.
func JoinParameters(heads bool) []Parameter {
	n := len(Members(heads))
	return []Parameter{{memberPrefix + "offset", []int{n, 1, 1}}, {memberPrefix + "slope", []int{n, 1, 1}}, {memberPrefix + "weight", []int{n, 1, 1}}}
}

// PatchParameters are the tensors of a model that decides by
// MeasurePatchMahalanobis, in the order in which they are written.
func PatchParameters(side int, heads bool, bank int) []Parameter {
	var ps []Parameter
	for _, m := range Members(heads) {
		ps = append(ps, m.Parameters(side, bank)...)
	}
	if heads {
		for k := range HeadCount {
			ps = append(ps, HeadParameters(k)...)
		}
	}
	return append(ps, JoinParameters(heads)...)
}

// HasPatches reports whether tensors of normality are those of patch features, and
// not those of MeasureBandMahalanobis.
func HasPatches(normality StateDict) bool { return normality.hasPrefix(patchPrefix) }

// HasHeads reports whether there are heads among tensors of normality.
func HasHeads(normality StateDict) bool { return normality.hasPrefix(headPrefix) }

func (sd StateDict) hasPrefix(prefix string) bool {
	for _, t := range sd {
		if strings.HasPrefix(t.Name, prefix) {
			return true
		}
	}
	return false
}

// BankSize is how many normal images the tensors hold to compare with, 0 where they
// are none of MeasurePatchMahalanobis.
func BankSize(normality StateDict) int {
	name := Member{PooledNeighbour, Taps()[0].Block}.parameter("bank").Name
	if t, ok := normality.Get(name); ok && len(t.Shape) == 2 {
		return t.Shape[0]
	}
	return 0
}

// Backbone names the network whose features a model decides by.
type Backbone struct {
	Name string `json:"name"`
	// SHA256 is that of the file of its weights in the program, in hexadecimal.
	SHA256 string `json:"sha256"`
}

// EmbeddedBackbone is the one that this program holds.
func EmbeddedBackbone() *Backbone {
	sum := backbone.SHA256()
	return &Backbone{Name: backbone.Embedded, SHA256: hex.EncodeToString(sum[:])}
}

// checkBackbone returns ErrMetadata, wrapped, when a decision is by another backbone
// than the program's.
func (d *Decision) checkBackbone() error {
	if d.Measure != MeasurePatchMahalanobis {
		return nil
	}
	own := EmbeddedBackbone()
	if d.Backbone == nil {
		return fmt.Errorf("%w: it decides by %s and names no backbone", ErrMetadata, d.Measure)
	}
	if *d.Backbone != *own {
		return fmt.Errorf("%w: it decides by features of %.40q with weights %.64q, this version has %s with %s; train it anew",
			ErrMetadata, d.Backbone.Name, d.Backbone.SHA256, own.Name, own.SHA256)
	}
	return nil
}
